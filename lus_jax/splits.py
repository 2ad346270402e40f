"""The three splits of a data set, in the order in which they are used."""

SPLITS = ("train", "validation", "test")
