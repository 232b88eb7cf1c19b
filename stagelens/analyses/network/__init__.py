"""Where in the network a stage's effect sits: its change undone block by block."""
