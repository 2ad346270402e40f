"""The benchmark of prediction, on toys: each side takes the same way from a file to maps."""

import numpy as np
import pytest

from lus_jax.benchmarks import peers, predict
from lus_jax.errors import UserError
from lus_jax.inference import frames as frames_lib

OPTIONS = "--size 32 --members 2 --frames 6 --height 20 --width 30 --rounds 2 --in-process"


@pytest.fixture
def torch_is_missing(monkeypatch):
  def missing():
    raise UserError("PyTorch's side needs torch, which is not installed.")

  monkeypatch.setattr(peers, "import_torch", missing)


def test_a_peer_that_is_missing_is_a_row(toy_networks, torch_is_missing, capsys):
  assert predict.main(OPTIONS.split()) == 0
  lines = capsys.readouterr().out.splitlines()
  rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if "|" in line}
  assert rows["torch, eager"][0].strip().startswith("not measured: PyTorch's side needs torch")
  assert rows["onnxruntime"][0].strip().startswith("not measured: ")
  assert float(rows["ours"][0]) > 0 and rows["ours"][1].strip() == "1.00"
  assert float(rows["files"][0]) > 0
  assert "2 x FPN on resnet18 at 32, clip of 6 frames of 30 x 20" in lines[-1]


def test_ratios_are_of_the_same_round(toy_networks, monkeypatch):
  rates = {"Ours": [4.0, 2.0, 6.0], "files": [1.0, 1.0, 1.0], "Torch": [2.0, 2.0, 2.0]}

  def timed(name):
    class Timed:
      def __init__(self, args, file, other=False):
        self.rates = iter(rates["files" if name == "Ours" and other else name])

      def sample(self):
        return next(self.rates)

    return Timed

  for name in ("Ours", "Torch"):
    monkeypatch.setattr(predict, name, timed(name))
  args = predict.parse([*OPTIONS.split(), "--peers", "torch", "--rounds", "3"])
  rows = {row["name"]: row for row in predict.measure(args)}
  assert rows["torch, eager"]["ratio"] == 2.0
  assert rows["torch, channels_last"]["spread"] == (1.0, 3.0)


def test_peers_go_the_same_way(tmp_path, monkeypatch):
  args = predict.parse(OPTIONS.split())
  file, seen = predict.make_clip(tmp_path, args), []
  predicted = frames_lib.predict

  def noted(*arguments, **options):
    for one in predicted(*arguments, **options):
      seen.append(one)
      yield one

  class Half(predict.Torch):
    def network(self, args):
      return lambda image: np.repeat(image / 2, 6, axis=1)

  peer = Half(args, file)
  monkeypatch.setattr(frames_lib, "predict", noted)
  assert peer.sample() > 0
  assert len(seen) == 6
  number, image, maps = seen[3]
  assert number == 3 and [one.shape for one in maps] == [(20, 30, 6)] * 2
  # Of a frame that fits without padding at its sides, half its brightness.
  np.testing.assert_allclose(maps[0].mean(), image.mean() / 2, rtol=0.05)
