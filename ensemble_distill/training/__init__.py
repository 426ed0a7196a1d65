"""Training from the cache: the loop, the order of rows, checkpoints, and the solves before a stage."""
