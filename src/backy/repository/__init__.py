"""The repository of one job: its records, history, locks, trash and quarantine."""
