"""How fast: commands that measure and the table of what they measured (RESULTS.md)."""
