"""The export formats of a student, one per file, and the ensemble's own; each export is verified by loading it back."""
