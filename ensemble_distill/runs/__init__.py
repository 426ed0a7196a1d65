"""The folder that a training leaves behind: its names, its records, saving, loading, finding the latest."""
