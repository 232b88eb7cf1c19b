"""Credit that adds up: what a table of coalitions says of each stage.

A coalition is the model in which only some of the stages happened, and a share is a stage's fair
part, by Shapley's rule, of what training as a whole did. Nothing here imports torch.
"""
