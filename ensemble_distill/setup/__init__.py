"""Getting started: what a folder contains, a settings file for it, and the problems of an existing one."""
