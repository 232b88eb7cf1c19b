"""Whether first order says anything of a stage's training data at all: three or four replays."""
