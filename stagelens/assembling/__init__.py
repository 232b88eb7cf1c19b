"""A run made of checkpoints that others saved."""
