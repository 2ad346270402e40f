"""Input: stored data sets, batches in a fixed order, and augmentation on the device."""
