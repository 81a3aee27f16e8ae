"""The folder of one VM: its records, history, locks, trash and quarantine."""
