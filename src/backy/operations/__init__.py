"""The operations on a job, such as backup and restore. Commands and the daemon call them."""
