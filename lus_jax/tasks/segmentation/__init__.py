"""The segmentation sweep."""
