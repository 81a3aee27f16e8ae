"""What monitoring and people are told of jobs and of the server. Judges, and changes nothing."""
