"""Figures and pages about students."""
