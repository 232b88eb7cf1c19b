"""Paths: which answers were learned, forgotten or flipped from boundary to boundary."""
