"""What to train on next: a stage's examples by how much each helps a target, judged by replay."""
