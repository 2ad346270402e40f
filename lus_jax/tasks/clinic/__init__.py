"""Which threshold helps in a clinical task: whole studies, one a seed, and one analysis."""
