"""Training: one step, a sweep of many models over the same batches, checkpoints and writers."""
