"""Training from the cache: the loop, the order of rows, checkpoints, and what is solved for before a stage."""
