"""Formats a student leaves in, a format a file; each is verified by loading it back."""
