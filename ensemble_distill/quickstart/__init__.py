"""An example ensemble for machines that have none yet: its data, its members and its folder."""
