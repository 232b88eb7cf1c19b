"""The training examples of a stage, to be browsed: what they are, and what became of each."""
