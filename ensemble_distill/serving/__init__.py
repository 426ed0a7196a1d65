"""Running an exported student without torch, and reading the metadata of its file."""
