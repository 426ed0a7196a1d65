"""Figures of ensemble, mean member and student, and how near the student is."""
