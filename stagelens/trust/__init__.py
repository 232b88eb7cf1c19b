"""What is known of a number: verification by replay, training noise, and which estimate to show."""
