"""Questions about a run with several leaves: what differs between two, and what made a merge."""
