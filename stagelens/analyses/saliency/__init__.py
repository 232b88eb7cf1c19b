"""Where in the input a stage's effect sits: its attribution to pixels or tokens.

``maps`` makes them, by integrated gradients on the final model and on the one without the stage;
``concentration`` says where most of them lies. It and ``map_table`` do without torch.
"""
