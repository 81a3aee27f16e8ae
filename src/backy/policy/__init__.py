"""When a job is due, and which revisions expire: pure functions; `now` is an argument."""
