"""From what other tools write to the folders that the builders read."""
