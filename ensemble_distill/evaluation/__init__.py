"""Figures of the ensemble, its mean member and a student, and how near the student is to the ensemble."""
