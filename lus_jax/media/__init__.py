"""Readers of pictures, videos and masks, as plain functions of NumPy arrays."""
