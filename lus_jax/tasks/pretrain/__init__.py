"""Pretraining without labels: what is hidden in frames and clips is drawn from what is seen."""
