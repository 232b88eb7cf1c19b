"""The regression gate: did a slice get worse between two runs, and which stage did it."""
