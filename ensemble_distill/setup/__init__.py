"""Starting from nothing: what a folder holds, a settings file for it, and what is wrong with one that is there."""
