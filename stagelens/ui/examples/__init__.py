"""The Examples page."""
