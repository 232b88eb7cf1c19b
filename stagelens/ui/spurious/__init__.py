"""The Spurious features page."""
