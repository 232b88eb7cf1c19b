"""Forward passes of several models over many examples."""
