"""Checks of members' outputs and of labels, on behalf of the tasks."""
