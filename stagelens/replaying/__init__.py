"""Recorded steps run again with torch's own optimisers, exactly or cheaply."""
