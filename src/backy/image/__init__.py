"""Images, drafts, and the loop that copies one to the other."""
