"""Built-in demos: real, small, deterministic by seed."""
