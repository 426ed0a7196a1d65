"""The pass: sources × teachers → cache."""
