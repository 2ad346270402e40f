"""Frozen models, and all that becomes of their output."""
