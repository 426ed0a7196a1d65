"""Running an exported student without torch, and what its file says of itself."""
