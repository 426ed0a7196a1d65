"""What members return and what labels are, checked: what a task asks for is done here."""
