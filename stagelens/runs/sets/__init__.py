"""Evaluation sets of a run, and the readers of files that people have."""
