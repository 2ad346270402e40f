"""What tests of importers share."""


def refused(place, capsys, code, part):
  """An import that was refused said one line, and wrote nothing."""
  out, error = capsys.readouterr()
  assert (code, out) == (2, "")
  assert error.startswith("error: ") and error.count("\n") == 1
  assert part in error
  assert not (place.path / "out").exists()
