"""Born-again generations: train, run, teacher, cache, train."""
