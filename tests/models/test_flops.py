import pytest

from lus_jax.benchmarks import peers
from lus_jax.models import flops

# Multiply-adds at 224 x 224 with three channels and 1000 classes, in 1e9, as torchvision has them.
RESNETS = {"resnet18": 1.814, "resnet34": 3.664, "resnet50": 4.089}
MOBILENET_V2 = 0.301


def decoder(channels, sides, classes):
  """Multiply-adds of the FPN's decoder, layer by layer; levels from stride 4 to 32."""
  a, b, c, d = sides
  laterals = sum(n * 256 * side**2 for n, side in zip(channels, sides, strict=True))
  first = 9 * 256 * 128 * (a**2 + b**2 + c**2 + d**2)
  # Stride 16 has one convolution more, at 8; stride 32 two, at 16 and 8.
  further = 9 * 128 * 128 * (b**2 + c**2 + b**2)
  return laterals + first + further + 128 * classes * a**2


@pytest.mark.parametrize("encoder", RESNETS)
def test_the_fpn_is_the_published_encoder_and_its_decoder(encoder):
  channels = (256, 512, 1024, 2048) if encoder == "resnet50" else (64, 128, 256, 512)
  classifier = 1000 * channels[-1]
  expected = 2 * (
    1e9 * RESNETS[encoder] - classifier + decoder(channels, (56, 28, 14, 7), classes=6)
  )
  found = flops.fpn(encoder, size=224, in_channels=3, classes=6)
  assert found == pytest.approx(expected, rel=5e-4)


def test_the_papers_network_takes_54_gflop_an_image():
  found = flops.fpn("resnet34", size=512, in_channels=1, classes=6)
  assert found == pytest.approx(54.0e9, rel=1e-3)
  # 500 is padded to 512; one channel of the image costs 49 x 64 multiply-adds at 256 x 256.
  assert flops.fpn("resnet34", size=500, in_channels=1, classes=6) == found
  more = flops.fpn("resnet34", size=512, in_channels=2, classes=6)
  assert more - found == 2 * 49 * 64 * 256**2


def test_half_the_width_takes_a_quarter_but_for_the_ends():
  whole, half = (
    flops.fpn("resnet18", size=64, in_channels=1, classes=8, width=w) for w in (1.0, 0.5)
  )
  ends = 2 * (49 * 64 * 32**2 + 128 * 8 * 16**2)
  assert half == (whole - ends) / 4 + ends / 2


def test_the_video_network_is_the_published_one_for_every_frame():
  found = flops.video(size=224, n_segment=1, in_channels=3, outputs=1000)
  assert found == pytest.approx(2e9 * MOBILENET_V2, rel=2e-3)
  head = 2 * 1280 * 1000
  clip = flops.video(size=224, n_segment=8, in_channels=3, outputs=1, hidden=(256, 64))
  assert clip == 8 * (found - head) + 2 * (1280 * 256 + 256 * 64 + 64)


def test_other_widths_and_odd_sizes_cost_what_pytorch_counts(torch):
  from torch.utils.flop_counter import FlopCounterMode

  network = peers.tsm(in_channels=7, outputs=3, n_segment=2, hidden=(16,), width=0.35).eval()
  with FlopCounterMode(display=False) as counter, torch.no_grad():
    network(torch.rand(1, 2, 7, 50, 50))
  assert counter.get_total_flops() == flops.video(
    size=50, n_segment=2, in_channels=7, outputs=3, hidden=(16,), width=0.35
  )
  network = peers.fpn("resnet50", in_channels=2, classes=3).eval()
  with FlopCounterMode(display=False) as counter, torch.no_grad():
    network(torch.rand(1, 2, 64, 64))
  assert counter.get_total_flops() == flops.fpn("resnet50", size=64, in_channels=2, classes=3)
