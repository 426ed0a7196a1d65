"""Fitting the few parameters that bring a student's uncertainty to its ensemble's."""
