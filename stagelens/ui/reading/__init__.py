"""Cached reading of run folders, and filtering of what was read."""
