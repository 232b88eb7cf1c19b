"""What every page is made of: frame, badges, state, inputs, charts, pins."""
