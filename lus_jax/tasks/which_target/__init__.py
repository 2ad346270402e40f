"""The study of targets, on simulated cohorts whose truth is known."""
