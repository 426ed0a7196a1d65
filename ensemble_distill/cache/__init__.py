"""A cache on disk: its manifest, how records are laid out, reading and writing. Storage only."""
