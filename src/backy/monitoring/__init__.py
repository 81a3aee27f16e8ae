"""The state of the jobs and the server: it is read and judged, and nothing is changed."""
