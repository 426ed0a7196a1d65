"""What the answer of a row is, a task a file."""
