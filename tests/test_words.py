"""Counts and what is counted."""

from lus_jax.words import many, plural


def test_one_is_singular():
  found = [plural(n, noun) for n in (0, 1, 2) for noun in ("test frame", "class")]
  assert found == ["0 test frames", "0 classes", "1 test frame", "1 class", "2 test frames"] + [
    "2 classes"
  ]
  assert many(1, "class") == "class"
