"""An ensemble to begin with, since a fresh machine has none: its data, its members, and the folder they stand in."""
