"""Every confidence threshold of a soft-labelled ultrasound data set, trained at once."""

__version__ = "0.1.0"
