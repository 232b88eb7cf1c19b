"""One recorded step as a pure function of the training state, and its derivatives."""
