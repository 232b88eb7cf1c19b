"""Numbers and stage effects in words."""
