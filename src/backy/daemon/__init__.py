"""The daemon: starts the commands that are due, and tells how they are."""
