"""The Remove a stage page."""
