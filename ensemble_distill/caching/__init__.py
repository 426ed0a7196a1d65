"""The caching pass: sources × teachers → cache."""
