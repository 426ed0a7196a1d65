"""The folder of a run: its names and records, saving, loading, and finding the latest."""
