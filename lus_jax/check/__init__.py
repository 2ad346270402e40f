"""Whether a data folder is what it should be: every file read, before anything is trained."""
