import sys

import pytest

from lus_jax.benchmarks import peers


@pytest.fixture
def without_smp(monkeypatch):
  monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
def test_our_layers_are_the_librarys(encoder, torch):
  pytest.importorskip("segmentation_models_pytorch")
  theirs = peers.fpn(encoder, in_channels=2, classes=3).eval()
  ours = peers.plain_fpn(encoder, in_channels=2, classes=3).eval()
  ours.load_state_dict(theirs.state_dict())
  image = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
  assert torch.equal(ours(image), theirs(image))


def test_torchvision_alone_is_enough(torch, without_smp):
  assert "torchvision" in peers.origin("fpn") and "torchvision" in peers.origin("tsm")
  logits = peers.fpn("resnet18", in_channels=1, classes=2).eval()(torch.zeros(1, 1, 64, 64))
  assert logits.shape == (1, 2, 64, 64)
  clips = torch.zeros(2, 4, 3, 32, 32)
  network = peers.tsm(in_channels=3, outputs=1, n_segment=4, width=0.25)
  assert network(clips).shape == (2, 1)
