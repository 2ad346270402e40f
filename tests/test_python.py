"""The functions behind the commands, as the package's docstring shows them."""

import json
import textwrap

import numpy as np
import pytest
from PIL import Image

import lus_jax
from lus_jax import report

SIZE = 32


@pytest.fixture
def folder(tmp_path):
  """A data folder of four patients, and a clip beside it."""
  directory = tmp_path / "mine"
  (directory / "videos").mkdir(parents=True)
  description = {"name": "mine", "licence": "CC0", "classes": ["pleura"]}
  (directory / "dataset.json").write_text(json.dumps(description))
  videos, labels, r = ["video,patient"], ["video,frame,masks"], np.random.default_rng(0)
  for i in range(4):
    Image.fromarray(r.integers(0, 255, (SIZE, SIZE), np.uint8)).save(
      directory / "videos" / f"{i}.png"
    )
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[8:16], mask[16:20] = 255, 100
    (directory / "masks" / f"m{i}").mkdir(parents=True)
    Image.fromarray(mask).save(directory / "masks" / f"m{i}" / "pleura.png")
    videos.append(f"{i}.png,p{i}")
    labels.append(f"{i}.png,0,m{i}")
  (directory / "manifest.csv").write_text("\n".join(videos) + "\n")
  (directory / "labels.csv").write_text("\n".join(labels) + "\n")
  np.save(tmp_path / "clip.npy", r.integers(0, 255, (2, 20, 30), np.uint8))
  return directory


def test_the_lines_of_the_docstring_run(folder, toy_networks, monkeypatch, tmp_path, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
  _, _, code = lus_jax.__doc__.partition("masks:\n\n")
  code = textwrap.dedent(code).replace("DIR", str(folder))
  small = f"config.data.image_size = {SIZE}; config.train.steps = 4; config.train.batch_size = 1\n"
  code = code.replace("run.train", f"{small}run.train", 1)
  # The page has tests of its own, and takes as long as all the rest.
  built, found = [], {}
  monkeypatch.setattr(report, "build", built.append)
  exec(code, found)
  assert built == ["runs/mine"]
  assert [row["threshold"] for row in found["scores"]] == [0.6, 0.2]
  assert found["number"] == 0 and found["image"].shape == (20, 30)
  assert [one.shape for one in found["maps"]] == [(20, 30, 1)] * 2
  assert (tmp_path / "masks" / "threshold_0.6" / "000001" / "pleura.png").exists()
  printed = capsys.readouterr().out
  assert "2 models" in printed and "0 (20, 30) (0.6, 0.2) [" in printed
  assert "note: a single validation frame chooses the best epochs" in printed
  assert "evaluating the best epochs: 2 outputs on 1 test frame" in printed
