"""The only doors: to files and folders, to programs, to signals."""
