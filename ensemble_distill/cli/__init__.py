"""The command line, a file per command: parse, call the workflow, render. Starts without torch."""
