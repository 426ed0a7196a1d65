"""A file per command: the joinery between the rooms, and the Python API.

Each takes `Settings` and returns a plain record; none prints. Progress goes to a `runtime.progress.Progress`.
"""
