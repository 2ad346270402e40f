"""TFDS builders: they pack frames, videos and confidence masks into array_record files."""
