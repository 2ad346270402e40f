"""Words of what is printed."""


def plural(n, noun):
  """'1 frame', '2 frames', '3 classes': a count and what is counted."""
  return f"{n} {many(n, noun)}"


def many(n, noun):
  """The noun alone, as it stands after the count n."""
  return noun if n == 1 else noun + ("es" if noun.endswith("s") else "s")
