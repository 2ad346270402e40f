"""What a config can name: whole runs, from data to results."""
