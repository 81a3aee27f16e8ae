"""The verbs: what backy does with a job, called by commands and by the daemon alike."""
