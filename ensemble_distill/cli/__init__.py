"""The command line, one file per command, which parses, calls the workflow and renders; it starts without torch."""
