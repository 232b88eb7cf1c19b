"""Watching a training loop: the recorder, and the callback of a Trainer."""
