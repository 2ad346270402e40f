"""The clinical tasks, on what frozen segmentation models see."""
