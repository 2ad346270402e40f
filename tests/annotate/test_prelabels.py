"""Pre-labels: what a model sees, as masks that a hand corrects."""

import dataclasses
import json
import struct

import ml_collections
import numpy as np
import pytest

from lus_jax.annotate import prelabels as prelabels_lib
from lus_jax.annotate import server
from lus_jax.errors import UserError
from lus_jax.inference import frames as frames_lib
from lus_jax.inference import trained as trained_lib
from tests.annotate import serving


@pytest.fixture
def offered(toy_trained, tmp_path, monkeypatch):
  """A folder, and what models of other classes in another order offer for it."""
  serving.make_clips(tmp_path / "set")
  trained = toy_trained((0, 1))
  config = ml_collections.ConfigDict(trained.config.to_dict() | {"data": {"image_size": 32}})
  classes = {"name": "toy", "classes": ["band", "pleura"]}
  trained = dataclasses.replace(trained, config=config, dataset=classes)
  monkeypatch.setattr(trained_lib, "load", lambda workdir, **options: trained)
  opened = serving.open_store(tmp_path / "set")
  return trained, opened, tmp_path


def test_a_models_maps_come_by_the_names_of_classes(offered):
  trained, opened, tmp_path = offered
  found = prelabels_lib.Prelabels("runs/x", opened)
  assert found.names == [view.name for view in trained.views]
  ((_, _, maps),) = frames_lib.predict(trained, opened.media("a.npy"), frames=[2])
  header, planes = found("a.npy", 2, found.names[1])
  assert header == {"known": [True, False, True]}
  for k, theirs in ((0, 1), (2, 0)):
    of_model = maps[1][..., theirs]
    assert (of_model < prelabels_lib.LEAST).any() or of_model.any()
    expected = np.where(of_model < 0.05 * 255 - 0.5, 0, of_model)
    np.testing.assert_array_equal(planes[k], expected)
  assert not planes[1].any()
  assert found.describe(found.names[0]) == f"runs/x: {found.names[0]}"


def test_what_is_no_model_or_knows_nothing_is_refused(offered, tmp_path):
  _, opened, _ = offered
  found = prelabels_lib.Prelabels("runs/x", opened, ["threshold_1"])
  assert found.names == ["threshold_1"]
  with pytest.raises(UserError, match="no model"):
    found("a.npy", 0, "threshold_0")
  with pytest.raises(UserError, match="0 to 3"):
    found("a.npy", 9, "threshold_1")
  with pytest.raises(UserError, match="--member"):
    prelabels_lib.Prelabels("runs/x", opened, ["other"])
  opened.classes = ("rib",)
  with pytest.raises(UserError, match="know band, pleura"):
    prelabels_lib.Prelabels("runs/x", opened)


@pytest.mark.parametrize(
  ("names", "first"),
  [
    (["threshold_1", "threshold_0.8", "threshold_0.55", "threshold_0.2", "soft"], "threshold_0.55"),
    (["threshold_0.6", "threshold_0.4"], "threshold_0.6"),
    (["soft", "mean"], "soft"),
    ([], ""),
  ],
)
def test_the_model_that_is_asked_first_is_neither_shy_nor_bold(names, first):
  assert server.asked_first(names) == first


def test_the_server_offers_them_and_provenance_says_so(offered):
  _, opened, tmp_path = offered
  found = prelabels_lib.Prelabels("runs/x", opened)
  with serving.serving(opened, prelabels=found) as port:
    folder = json.loads(serving.ask(port, "api/folder")[1])
    assert folder["prelabels"] == found.names and folder["prelabel"] in found.names
    status, content, _ = serving.ask(port, "api/prelabel?video=b&frame=1&member=threshold_0")
    assert status == 200
    (length,) = struct.unpack_from("<I", content)
    planes = np.frombuffer(content[4 + length :], np.uint8)
    np.testing.assert_array_equal(planes, found("b", 1, "threshold_0")[1].ravel())
    masks = planes.reshape(3, serving.HEIGHT, serving.WIDTH)
    more = {"prelabel": "threshold_0", "prelabelled": ["pleura", "band"], "touched": ["band"]}
    body = serving.message("b", 1, masks=masks, **more)
    status, content, _ = serving.ask(port, "api/save?video=b", method="POST", body=body)
    assert status == 200, content
  row = (tmp_path / "set" / "provenance.csv").read_text().splitlines()[1]
  assert row.endswith("runs/x: threshold_0,pleura;band,band,")
