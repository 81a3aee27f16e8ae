"""The daemon: what runs the commands of all jobs when they are due."""
