"""Formats that a student leaves in, a format a file, and the ensemble itself; each is verified by loading it back."""
