"""One file per command: it connects the rooms, and is the Python API.

Each takes `Settings` and returns a plain record; none prints. Progress goes to a `runtime.progress.Progress`.
"""
