"""The run folder: its schema, files, states, steps and batches, and its evaluation sets."""
