"""What is due and what expires: pure functions; `now` is an argument."""
