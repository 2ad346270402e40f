from lus_jax.data.datasets import Dataset


def notes(split_unit="patient", **metadata):
  dataset = Dataset(
    name="d",
    version="1",
    classes=("a",),
    thin=(),
    split_unit=split_unit,
    splits={"train": range(3)},
    metadata=metadata,
  )
  assert dataset.summary()["splits"] == {"train": 3}
  return dataset.notes


def test_notes_say_what_limits_a_result():
  assert notes() == []
  assert "nothing about patients" in notes(simulated=True)[0]
  assert "not an independent test" in notes(split_unit="frame")[0]
  assert "not an independent test" in notes(patients_are_unknown=True)[0]
  assert "background weight only" in notes(binary=True)[0]
  assert "39%" in notes(largest_confidence=100 / 255)[0]
  assert notes(largest_confidence=1.0, binary=False, patients_are_unknown=False) == []
