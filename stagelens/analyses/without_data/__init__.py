"""What the final model would do without some training examples of a stage, by replay.

These are rows left out of the batches that were drawn, see :mod:`stagelens.replaying.left_out`: not
a new training without them, which would draw other batches.
"""
