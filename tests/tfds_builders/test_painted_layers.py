import io
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from psd_tools import PSDImage

from lus_jax.media import readers
from tfds_builders.importers import __main__ as importers
from tfds_builders.importers import layered
from tfds_builders.lus_folder import manifest

H, W = 20, 30
PICTURE = np.random.default_rng(0).integers(1, 255, (H, W)).astype(np.uint8)
RED = (255, 0, 0)


def stroke(alpha, h=8, w=10, colour=RED):
  """A layer's pixels: a block that is so opaque, in a transparent frame."""
  found = np.zeros((h, w, 4), np.uint8)
  found[..., :3] = colour
  found[1:-1, 2:-2, 3] = alpha
  return found


def placed(alpha, top, left, h=8, w=10):
  """What `stroke` covers of the picture."""
  whole = np.zeros((H + 100, W + 100))
  whole[50 + top : 50 + top + h, 50 + left : 50 + left + w] = stroke(alpha, h, w)[..., 3]
  return whole[50 : 50 + H, 50 : 50 + W]


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def layer(name, pixels, top=0, left=0, **more):
  return {"name": name, "pixels": pixels, "y": top, "x": left, **more}


BACKGROUND = layer("Background", PICTURE)


def ora(path, *layers, size=(H, W), stack=None, extra=()):
  """Writes OpenRaster; layers from the top to the bottom, groups as (attributes, layers)."""
  files = {}

  def node(one):
    if isinstance(one, tuple):
      attributes, inner = one
      text = " ".join(f'{key}="{value}"' for key, value in attributes.items())
      return f"<stack {text}>{''.join(map(node, inner))}</stack>"
    src = f"data/layer{len(files)}.png"
    files[src] = png(one["pixels"])
    text = " ".join(f'{k}="{v}"' for k, v in {"src": src, **one}.items() if k != "pixels")
    return f"<layer {text}/>"

  body = "".join(map(node, layers))
  stack = stack or f'<image w="{size[1]}" h="{size[0]}"><stack>{body}</stack></image>'
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("mimetype", "image/openraster", zipfile.ZIP_STORED)
    archive.writestr("stack.xml", stack)
    for name, content in (*files.items(), *extra):
      archive.writestr(name, content)


def run(folder, *more, name="", classes="b_line,pleura"):
  return importers.main(
    ["layers", f"--annotations={name}{folder / 'in'}", f"--classes={classes}"]
    + [f"--out={folder / 'out'}", *more]
  )


def written(folder):
  return {
    (label.video.name, label.frame, label.annotator): {
      name: np.rint(255 * readers.read_mask(path)).astype(int) for name, path in label.masks.items()
    }
    for label in manifest.read_folder(folder / "out").labels
  }


def refused(folder, capsys, code, part):
  out, error = capsys.readouterr()
  assert (code, out) == (2, "")
  assert error.startswith("error: ") and error.count("\n") == 1
  assert part in error
  assert not (folder / "out").exists()


def test_openraster(tmp_path, capsys):
  ora(
    tmp_path / "in" / "sub" / "f1.ora",
    layer("B_line copy 2", stroke(200), 10, 12, opacity="1.0"),
    layer("b_line", stroke(255), 4, 8, opacity="0.5", **{"composite-op": "svg:multiply"}),
    ({"name": "pleura", "opacity": "0.6"}, [layer("left", stroke(255), -3, 25, opacity="0.8")]),
    layer("notes", stroke(255)),
    layer("pleura 2", stroke(255), 1, 1, visibility="hidden"),
    BACKGROUND,
  )
  (tmp_path / "in" / "readme.txt").write_text("x")
  assert run(tmp_path) == 0
  printed = capsys.readouterr().out
  for part in (
    "classes b_line, pleura.",
    "Layers that count as b_line: B_line copy 2.",
    "Layers that count as pleura: left.",
    "Left out: 1 layers of no class (f1.ora: notes)",
    "Left out: 1 invisible layers (f1.ora: pleura 2)",
    "Left out: 1 files that are no layered pictures (readme.txt)",
  ):
    assert part in printed
  (masks,) = written(tmp_path).values()
  expected = np.maximum(placed(200, 10, 12), np.rint(0.5 * placed(255, 4, 8)))
  np.testing.assert_array_equal(masks["b_line"], expected)
  np.testing.assert_array_equal(masks["pleura"], np.rint(0.48 * placed(255, -3, 25)))
  (video,) = manifest.read_folder(tmp_path / "out").videos
  assert video.name == "sub/f1.png"
  np.testing.assert_array_equal(readers.read(video.media)[0], PICTURE)
  before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
  assert run(tmp_path) == 0
  assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}


def test_pictures_of_the_same_name_beside_it(tmp_path, capsys):
  (tmp_path / "videos" / "clip").mkdir(parents=True)
  for i in range(4):
    Image.fromarray(PICTURE).save(tmp_path / "videos" / "clip" / f"{i + 5:06d}.png")
  np.save(tmp_path / "videos" / "film.npy", np.stack([PICTURE] * 3))
  # With and without the picture at the bottom.
  ora(tmp_path / "in" / "clip_000007.ora", layer("b_line", stroke(90), 2, 2), BACKGROUND)
  ora(tmp_path / "in" / "film_1.ora", layer("b_line", stroke(80), 2, 2))
  videos = f"--videos={tmp_path / 'videos'}"
  pattern = r"--frame-pattern=(.+)_(\d+)"
  assert run(tmp_path, videos, "--folders-are-clips", pattern) == 0
  masks = written(tmp_path)
  assert set(masks) == {("clip", 2, ""), ("film.npy", 1, "")}
  np.testing.assert_array_equal(masks["clip", 2, ""]["b_line"], placed(90, 2, 2))
  shutil.rmtree(tmp_path / "out")
  capsys.readouterr()
  refused(tmp_path, capsys, run(tmp_path, pattern), "need --videos")
  refused(tmp_path, capsys, run(tmp_path, videos), "is not in")
  ora(tmp_path / "in" / "film_1.ora", layer("b_line", stroke(80), 2, 2), size=(H, W + 1))
  code = run(tmp_path, videos, "--folders-are-clips", pattern)
  refused(tmp_path, capsys, code, "film_1.ora is 31 x 20 and its frame 30 x 20")


def test_several_annotators(tmp_path, capsys):
  for i, who in enumerate(("anna", "ben")):
    ora(tmp_path / who / "f1.ora", layer("b_line", stroke(255), 2, 2 + i), BACKGROUND)
  argv = ["layers", "--classes=b_line", f"--out={tmp_path / 'out'}", "--annotations"]
  argv += [f"{who}={tmp_path / who}" for who in ("anna", "ben")]
  assert importers.main(argv) == 0
  assert "1 image, 2 raters (anna, ben)" in capsys.readouterr().out
  for i, who in enumerate(("anna", "ben")):
    mask = np.asarray(Image.open(tmp_path / "out" / "raters" / who / "f1.png"))
    np.testing.assert_array_equal(mask, placed(255, 2, 2 + i))
  shutil.rmtree(tmp_path / "out")
  other = layer("Background", 255 - PICTURE)
  ora(tmp_path / "ben" / "f1.ora", layer("b_line", stroke(255), 2, 2), other)
  refused(tmp_path, capsys, importers.main(argv), "f1.ora has another picture than others' f1")


def psd_of(path, mode="RGB", depth=8):
  psd = PSDImage.new(mode, (W, H), depth=depth)
  picture = Image.fromarray(PICTURE)
  psd.create_pixel_layer(picture if mode == "L" else picture.convert("RGB"), name="Background")
  path.parent.mkdir(parents=True, exist_ok=True)
  return psd


def add(psd, name, alpha, top, left, **more):
  return psd.create_pixel_layer(
    Image.fromarray(stroke(alpha)), name=name, top=top, left=left, **more
  )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_photoshop(tmp_path, capsys, mode):
  psd = psd_of(tmp_path / "in" / "f1.psd", mode)
  # Of RGB and grey the transparency becomes a mask, of RGBA it is the layer's own.
  add(psd, "b_line", 200, 4, 25, opacity=128)
  strong = add(psd, "b_line copy", 255, 10, 20)
  strong.fill_opacity = 102
  inner = add(psd, "stroke", 240, -3, 5)
  psd.create_group([inner], name="pleura").opacity = 100
  add(psd, "pleura", 255, 1, 1).visible = False
  add(psd, "notes", 255, 1, 1)
  psd.save(tmp_path / "in" / "f1.psd")
  assert run(tmp_path) == 0
  printed = capsys.readouterr().out
  assert "Left out: 1 invisible layers (f1.psd: pleura)" in printed
  assert "Left out: 1 layers of no class (f1.psd: notes)" in printed
  (masks,) = written(tmp_path).values()
  expected = np.maximum(np.rint(128 / 255 * placed(200, 4, 25)), np.rint(0.4 * placed(255, 10, 20)))
  np.testing.assert_array_equal(masks["b_line"], expected)
  np.testing.assert_array_equal(masks["pleura"], np.rint(100 / 255 * placed(240, -3, 5)))
  (video,) = manifest.read_folder(tmp_path / "out").videos
  np.testing.assert_array_equal(readers.read(video.media)[0], PICTURE)


def test_masks_of_photoshop(tmp_path):
  psd = psd_of(tmp_path / "in" / "f1.psd", "RGBA")
  one = add(psd, "b_line", 200, 4, 5)
  half = np.full((8, 10), 255, np.uint8)
  half[:, :5] = 51
  one.create_mask(Image.fromarray(half))
  other = add(psd, "pleura", 200, 4, 5)
  other.create_mask(Image.fromarray(half))
  other.mask.disabled = True
  psd.save(tmp_path / "in" / "f1.psd")
  assert run(tmp_path) == 0
  (masks,) = written(tmp_path).values()
  expected = placed(200, 4, 5)
  np.testing.assert_array_equal(masks["pleura"], expected)
  expected[:, :10] *= 0.2
  np.testing.assert_array_equal(masks["b_line"], expected)


def test_what_cuts_in_photoshop_is_refused(tmp_path, capsys):
  psd = psd_of(tmp_path / "in" / "f1.psd")
  add(psd, "pleura", 255, 4, 5)
  add(psd, "b_line", 255, 4, 5).clipping = True
  psd.save(tmp_path / "in" / "f1.psd")
  refused(tmp_path, capsys, run(tmp_path), "the layer 'b_line' is clipped to the one below")
  psd = PSDImage.new("CMYK", (W, H))
  psd.save(tmp_path / "in" / "f1.psd")
  refused(tmp_path, capsys, run(tmp_path), "f1.psd is in CMYK; save it as RGB")
  PSDImage.new("RGB", (W, H)).save(tmp_path / "in" / "f1.psd")
  refused(tmp_path, capsys, run(tmp_path), "f1.psd has no layers")


def pages(path, *found, names=True):
  """Writes a TIFF of pages: pairs of name and pixels."""
  images = []
  path.parent.mkdir(parents=True, exist_ok=True)
  for name, pixels in found:
    image = Image.fromarray(pixels)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    if names:
      info[285] = name
    image.encoderinfo = {"tiffinfo": info}
    images.append(image)
  first, *others = images
  first.save(path, save_all=True, append_images=others, tiffinfo=first.encoderinfo["tiffinfo"])


def whole(alpha, top, left):
  found = np.zeros((H, W, 4), np.uint8)
  found[..., 3] = placed(alpha, top, left)
  return found


@pytest.mark.parametrize("names", [True, False])
def test_pages_of_tiff(tmp_path, names):
  grey = placed(153, 4, 5).astype(np.uint8)
  found = [("x", PICTURE), ("b_line", whole(200, 8, 3)), ("pleura", grey)]
  pages(tmp_path / "in" / "f1.TIF", *found, names=names)
  assert run(tmp_path) == 0
  (masks,) = written(tmp_path).values()
  np.testing.assert_array_equal(masks["b_line"], placed(200, 8, 3))
  np.testing.assert_array_equal(masks["pleura"], grey)
  (video,) = manifest.read_folder(tmp_path / "out").videos
  np.testing.assert_array_equal(readers.read(video.media)[0], PICTURE)


def test_tiff_mistakes(tmp_path, capsys):
  file = tmp_path / "in" / "f1.tif"
  pages(file, ("x", PICTURE))
  refused(tmp_path, capsys, run(tmp_path), "f1.tif has one page")
  pages(file, ("", PICTURE), ("", whole(9, 1, 1)), names=False)
  refused(tmp_path, capsys, run(tmp_path), "f1.tif has 2 layers without names; name them as the c")
  pages(file, ("x", PICTURE), ("line", whole(9, 1, 1)))
  refused(
    tmp_path, capsys, run(tmp_path), "layer is called b_line or pleura (there are: f1.tif: line)"
  )
  pages(file, ("x", PICTURE), ("b_line", PICTURE[1:]))
  refused(tmp_path, capsys, run(tmp_path), "page 2 is 30 x 19 pixels and the first 30 x 20")
  pages(file, ("x", PICTURE), ("b_line", whole(9, 1, 1)[..., :3]))
  refused(tmp_path, capsys, run(tmp_path), "page 2 has colours but no transparency")


def test_which_layer_is_the_picture(tmp_path, capsys):
  picture = layer("scan", PICTURE)
  ora(tmp_path / "in" / "f1.ora", picture, layer("b_line", stroke(255), 2, 2))
  refused(tmp_path, capsys, run(tmp_path), "f1.ora has no layer for the picture at the bottom (b_")
  assert run(tmp_path, "--picture-layer=Scan") == 0
  (masks,) = written(tmp_path).values()
  np.testing.assert_array_equal(masks["b_line"], placed(255, 2, 2))
  shutil.rmtree(tmp_path / "out")
  capsys.readouterr()
  opaque = np.dstack([PICTURE] * 3)
  ora(tmp_path / "in" / "f1.ora", layer("b_line", opaque), picture)
  refused(tmp_path, capsys, run(tmp_path), "f1.ora: 'b_line' covers the whole picture alike")
  scan = layer("scan", stroke(255, colour=(9, 9, 9)), 2, 2)
  ora(tmp_path / "in" / "f1.ora", layer("b_line", stroke(255)), scan)
  assert run(tmp_path) == 0
  assert "1 transparent parts of pictures, which become black" in capsys.readouterr().out
  (video,) = manifest.read_folder(tmp_path / "out").videos
  np.testing.assert_array_equal(readers.read(video.media)[0], placed(255, 2, 2) / 255 * 9)


@pytest.mark.parametrize(
  ("stack", "part"),
  [
    ("<image", "no XML that is read"),
    ('<!DOCTYPE x [<!ENTITY a "b">]><image w="3" h="2">&a;</image>', "no XML that is read"),
    ('<?xml version="1.0" encoding="UTB-8"?><image/>', "no XML that is read"),
    ("<svg/>", "describes no picture with layers"),
    ('<image w="3"><stack/></image>', "has h='None'"),
    ('<image w="-3" h="2"><stack/></image>', "-3 x 2 pixels"),
    ('<image w="99999999" h="99999999"><stack/></image>', "more than 34 million"),
    ('<image w="3" h="2"><stack/></image>', "has no layers"),
    ('<image w="3" h="2"><stack><layer src="../../x.png"/></stack></image>', "not in the archive"),
    ('<image w="3" h="2"><stack><layer src="/etc/passwd"/></stack></image>', "not in the archive"),
    ('<image w="3" h="2"><stack><layer src="a.png" x="1e9"/></stack></image>', "has x='1e9'"),
    ('<image w="3" h="2"><stack><layer src="a.png" opacity="2"/></stack></image>', "opacity '2'"),
    (
      '<image w="3" h="2"><stack><layer src="a.png" composite-op="svg:dst-out"/></stack></image>',
      "drawn with dst-out, which cuts",
    ),
    (
      '<image w="3" h="2">' + "<stack>" * 300 + "</stack>" * 300 + "</image>",
      "more than 100 groups in groups",
    ),
    (
      '<image w="3" h="2"><stack>' + '<layer src="a.png"/>' * 1100 + "</stack></image>",
      "too many layers",
    ),
  ],
)
def test_mistakes_in_stacks(tmp_path, capsys, stack, part):
  ora(tmp_path / "in" / "f1.ora", stack=stack, extra=[("a.png", png(PICTURE))])
  refused(tmp_path, capsys, run(tmp_path), part)


def test_archives_that_unpack_too_far(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(layered, "MAX_MEMBER", 1000)
  ora(tmp_path / "in" / "f1.ora", stack=" " * 2000)
  refused(tmp_path, capsys, run(tmp_path), "'stack.xml' is larger than")


def test_layers_that_are_too_large(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(layered, "MAX_PIXELS", 1000)
  ora(tmp_path / "in" / "f1.ora", layer("b_line", stroke(255, 50, 50)), BACKGROUND)
  refused(tmp_path, capsys, run(tmp_path), "f1.ora: 'data/layer0.png' says that it has 50 x 50")


def test_other_mistakes(tmp_path, capsys):
  refused(tmp_path, capsys, run(tmp_path), "in does not exist; mend --annotations")
  (tmp_path / "in").mkdir()
  refused(tmp_path, capsys, run(tmp_path), "in holds no layered picture (ora, psd, psb, tif, tiff)")
  for content in (b"PK\x03\x04", b"8BPS", b"II*\0"):
    for suffix in (".ora", ".psd", ".tif"):
      (tmp_path / "in" / f"f1{suffix}").write_bytes(content)
      refused(tmp_path, capsys, run(tmp_path), f"f1{suffix} is damaged or")
      (tmp_path / "in" / f"f1{suffix}").unlink()
  broken = png(PICTURE)[:-20]
  one = '<layer name="b_line" src="a.png"/><layer src="a.png"/>'
  stack = f'<image w="30" h="20"><stack>{one}</stack></image>'
  ora(tmp_path / "in" / "f1.ora", stack=stack, extra=[("a.png", broken)])
  refused(tmp_path, capsys, run(tmp_path), "f1.ora: 'a.png' is damaged")
