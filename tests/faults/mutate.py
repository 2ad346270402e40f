"""Ways to break a file; each takes a random generator and what is to be broken."""

import gzip
import io
import json
import os
import re
import struct
import zipfile
import zlib

# Texts that people, spreadsheets and attackers put into cells and JSON.
NASTY = (
  *("", " ", "0", "-1", "1e308", "1e38", "NaN", "inf", "-inf", "null", "None", "true", "1.0"),
  *(
    "9" * 400,
    "9" * 5000,
    "-" + "9" * 30,
    "0x10",
    "１２",
    "1_0",
    "²",
    "1,5",
    "=1+1",
    "@x",
    "+1",
    "-x",
  ),
  *(".", "..", "/", "../x", "/etc/hostname", "a/../../b", "./s0.png", "a\x00b", "a\nb", "\ufeff"),
  *("x" * 300, "é", "e\u0301", "\u202e", "\U0001f600", "'", '"', "%s", "{}", "<b>", "NA", "nan"),
)
_WORDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1)


def truncate(rng, data):
  """Cuts the end off."""
  return data[: int(rng.integers(len(data)))] if data else data


def flip(rng, data):
  """Flips 1 to 30 bits."""
  data = bytearray(data)
  for _ in range(int(rng.choice((1, 1, 3, 30)))):
    if data:
      data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
  return bytes(data)


def _span(rng, data):
  start = int(rng.integers(len(data) + 1))
  return start, min(len(data), start + int(rng.integers(1, 200)))


def zero(rng, data):
  """Sets a stretch to zero, as a disk that lost a block does."""
  start, end = _span(rng, data)
  return data[:start] + bytes(end - start) + data[end:]


def cut(rng, data):
  """Leaves a stretch out."""
  start, end = _span(rng, data)
  return data[:start] + data[end:]


def duplicate(rng, data):
  """Writes a stretch twice."""
  start, end = _span(rng, data)
  return data[:end] + data[start:]


def swap(rng, data):
  """Exchanges two stretches."""
  (a, b), (c, d) = sorted((_span(rng, data), _span(rng, data)))
  return data if b > c else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def splice(rng, data):
  """Puts random bytes in."""
  start, _ = _span(rng, data)
  return data[:start] + rng.bytes(int(rng.integers(1, 64))) + data[start:]


def word(rng, data):
  """Overwrites a number near the beginning, where headers are, by an extreme one."""
  size, order = int(rng.choice((1, 2, 4, 8))), str(rng.choice(("little", "big")))
  value = int(rng.choice(_WORDS)) & ((1 << (8 * size)) - 1)
  at = int(rng.integers(max(1, min(len(data), 400))))
  return data[:at] + value.to_bytes(size, order) + data[at + size :]


def empty(rng, data):
  """Nothing is left."""
  return b""


def foreign(rng, data):
  """What another program would have written under this name."""
  return FOREIGN[int(rng.integers(len(FOREIGN)))]


FOREIGN = (
  b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n",
  b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'/>",
  b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
  b"BM" + struct.pack("<IHHIIiiHHIIiiII", 62, 0, 0, 54, 40, 64, 64, 1, 24, 0, 8, 0, 0, 0, 0),
  b"\x89PNG\r\n\x1a\n",
  b"GIF89a",
  b"RIFF\x00\x00\x00\x00AVI ",
  b"PK\x03\x04",
  b"\x1f\x8b\x08\x00",
  b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
  b"[" * 100_000,
  b'{"a":' * 100_000,
  b"\xff\xfe\x00\x00",
  bytes(range(256)) * 4,
)

BYTES = (truncate, flip, zero, cut, duplicate, swap, splice, word, empty, foreign)


def png_inside(rng, data):
  """Breaks what a PNG says, under checksums that are right."""
  chunks, at = [], 8
  while at + 8 <= len(data):
    length, name = struct.unpack(">I4s", data[at : at + 8])
    chunks.append((name, data[at + 8 : at + 8 + length]))
    at += 12 + length
  i = int(rng.integers(len(chunks)))
  name, content = chunks[i]
  if name == b"IDAT" and rng.random() < 0.7:
    content = zlib.compress(_one(rng)(rng, zlib.decompress(content)))
  else:
    content = _one(rng)(rng, content)
  chunks[i] = name, content
  if rng.random() < 0.2:
    chunks.append(chunks[int(rng.integers(len(chunks)))])
  return data[:8] + b"".join(
    struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks
  )


def gzip_inside(rng, data):
  """Breaks what is compressed, under a checksum that is right."""
  return gzip.compress(_one(rng)(rng, gzip.decompress(data)))


def zip_inside(rng, data):
  """Breaks one member of an archive, or its name, under checksums that are right."""
  out = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as new:
    names = archive.namelist()
    chosen = names[int(rng.integers(len(names)))]
    for name in names:
      content = archive.read(name)
      if name == chosen:
        choice = rng.random()
        if choice < 0.1:
          continue
        if choice < 0.2:
          name = f"../../{name}"
        mutator = {".xml": xml_value, ".png": png_inside}.get(name[-4:], _one(rng))
        content = (mutator if choice < 0.7 else _one(rng))(rng, content)
      new.writestr(name, content)
  return out.getvalue()


def npy_header(rng, data):
  """Other types, shapes and orders in a NumPy header of the right length."""
  descr = str(rng.choice(("'|O'", "'<f8'", "'|b1'", "'<U9'", "'>u2'", "[('a', '|u1')]", "'|u1'")))
  shape = str(
    rng.choice(("()", "(0,)", "(-1, 4, 64)", f"({10**12}, 64, 64)", "(2, 64, 64)", "[1]"))
  )
  order = str(rng.choice(("True", "False", "None")))
  header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
  header += b" " * (-(len(header) + 11) % 64) + b"\n"
  return data[:8] + struct.pack("<H", len(header)) + header + data[128:]


def safetensors_header(rng, data):
  """A broken table of tensors, of the length that is stated."""
  (length,) = struct.unpack("<Q", data[:8])
  header = json_tree(rng, data[8 : 8 + length])
  return struct.pack("<Q", len(header)) + header + data[8 + length :]


_PIXELS = {
  *((0x0002, "US"), (0x0006, "US"), (0x0010, "US"), (0x0011, "US"), (0x0100, "US")),
  *((0x0101, "US"), (0x0103, "US"), (0x0008, "IS"), (0x0004, "CS")),
}
_COLOURS = ("MONOCHROME1", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "", "?")


def dicom_element(rng, data):
  """Another number of rows, frames, bits and the like, or other colours, in DICOM."""
  number, kind = sorted(_PIXELS)[int(rng.integers(len(_PIXELS)))]
  start = struct.pack("<HH2s", 0x28, number, kind.encode())
  at = data.find(start)
  if at < 0:
    return _one(rng)(rng, data)
  length = struct.unpack("<H", data[at + 6 : at + 8])[0]
  if kind == "US":
    value = struct.pack("<H", int(rng.choice((0, 1, 2, 3, 4, 7, 8, 12, 16, 25, 32, 255, 65535))))
  else:
    texts = ("0", "-1", "1", "3", "5", "99999999", "2147483648", "1e9", "x") if kind == "IS" else ()
    value = str(rng.choice(texts or _COLOURS)).encode()
    value += b" " * (len(value) % 2)
  return data[: at + 6] + struct.pack("<H", len(value)) + value + data[at + 8 + length :]


def deflated_inside(rng, data):
  """Breaks what a deflated DICOM file holds."""
  start = 144 + struct.unpack("<I", data[140:144])[0]
  broken = dicom_element(rng, zlib.decompress(data[start:], -15))
  if rng.random() < 0.5:
    broken = _one(rng)(rng, broken)
  deflate = zlib.compressobj(wbits=-15)
  return data[:start] + deflate.compress(broken) + deflate.flush()


def header_number(rng, data):
  """Another number in a header that is text."""
  head, rest = data[:1000], data[1000:]
  found = list(re.finditer(rb"\d+", head))
  if not found:
    return data
  one = found[int(rng.integers(len(found)))]
  numbers = ("0", "-1", "1", "3", "7", "65535", "99999", "4294967296", "9" * 30, "1e9", "nan", "x")
  return head[: one.start()] + str(rng.choice(numbers)).encode() + head[one.end() :] + rest


def _one(rng):
  return (flip, zero, cut, duplicate, splice, word, empty)[int(rng.integers(7))]


_HUGE = "a number that Python does not turn into an int"
_VALUES = (None, True, -1, 0, 10**400, _HUGE, 1e308, float("nan"), float("inf"), [], {}, [[]])


def _value(rng):
  values = NASTY if rng.random() < 0.5 else _VALUES
  return values[int(rng.integers(len(values)))]


def json_tree(rng, data):
  """Replaces, removes, renames or doubles one node of a JSON text, or nests it deeply."""
  if rng.random() < 0.1:
    return b'{"a":' * 50_000 + data + b"}" * 50_000
  if rng.random() < 0.1:
    return b"[" * 990 + data + b"]" * 990
  tree = json.loads(data)
  nodes = []

  def walk(node):
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
      nodes.append((node, key))
      if isinstance(node[key], (dict, list)):
        walk(node[key])

  walk(tree)
  node, key = nodes[int(rng.integers(len(nodes)))]
  choice = rng.random()
  if choice < 0.6:
    node[key] = _value(rng)
  elif choice < 0.75:
    del node[key]
  elif isinstance(node, list):
    node.insert(key, node[key])
  else:
    node[str(_value(rng))] = node.pop(key)
  text = json.dumps(tree).replace(f'"{_HUGE}"', "9" * 5000)
  if choice > 0.9 and text.startswith("{"):  # every key twice
    text = f"{text[:-1]},{text[1:]}"
  return text.encode()


def csv_cell(rng, data):
  """Breaks one cell, row or column of a table, or how it was saved."""
  rows = [line.split(",") for line in data.decode().splitlines()]
  i = int(rng.integers(len(rows)))
  k = int(rng.integers(len(rows[i])))
  choice = int(rng.integers(12))
  if choice < 6:
    value = NASTY[int(rng.integers(len(NASTY)))]
    quoted = any(c in value for c in ',"\n')
    rows[i][k] = '"' + value.replace('"', '""') + '"' if quoted else value
  elif choice == 6:
    del rows[i][k]
  elif choice == 7:
    rows.append(rows[i])
  elif choice == 8:
    rows[i] += ["x"] * int(rng.choice((1, 100, 100_000)))
  elif choice == 9:
    k = min(k, min(map(len, rows)) - 1)
    for row in rows:
      row.append(row[k])
  elif choice == 10:
    other = int(rng.integers(len(rows)))
    rows[i], rows[other] = rows[other], rows[i]
  else:
    return data.decode().encode(str(rng.choice(("utf-16", "utf-8-sig", "utf-16-le"))))
  return "\n".join(map(",".join, rows)).encode() + b"\n"


_XML_VALUE = re.compile(rb'="([^"]*)"|>([^<>]+)<')
_BOMB = b"<!DOCTYPE a [<!ENTITY b 'xxxxxxxxxx'>%s]>" % b"".join(
  b"<!ENTITY %c '%s'>" % (c, b"&%c;" % (c - 1) * 10) for c in range(99, 110)
)


def xml_value(rng, data):
  """Replaces one value of an XML text, repeats or removes an element, or adds entities or depth."""
  choice = rng.random()
  if choice < 0.05:
    return _BOMB + data.replace(b"b_line", b"&m;")
  if choice < 0.1:
    return data.replace(b"</annotations>", b"<image>" * 50_000 + b"</annotations>")
  found = list(_XML_VALUE.finditer(data))
  if not found:
    return data
  start, end = (one := found[int(rng.integers(len(found)))]).span(1 if one[1] is not None else 2)
  if choice < 0.85:
    value = _value(rng)
    value = str(value).replace(_HUGE, "9" * 5000).encode(errors="replace")
    for special, written in ((b"&", b"&amp;"), (b"<", b"&lt;"), (b'"', b"&quot;"), (b"\0", b"")):
      value = value.replace(special, written)
    return data[:start] + value + data[end:]
  start, end = data.rfind(b"<", 0, start), data.find(b">", end) + 1
  return data[:start] + data[start:end] * (0 if choice < 0.92 else 2) + data[end:]


def zip_bomb(rng, data):
  """An archive whose members are zeros that unpack to gigabytes, or say that they do."""
  out = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    names = archive.namelist()
  with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
    for name in names:
      new.writestr(name, bytes(2**26))
  content = out.getvalue()
  if rng.random() < 0.5:
    return content
  # Of their stated size, in the directory at the end.
  size = struct.pack("<I", 2**26)
  return content.replace(size, struct.pack("<I", int(rng.choice((0, 10, 2**31, 2**32 - 1)))))


def fifo(rng, path, outside):
  """A pipe, which blocks whoever opens it."""
  path.unlink()
  os.mkfifo(path)


def link_out(rng, path, outside):
  """A link to the file, which lies outside of the data folder now."""
  path.rename(outside)
  path.symlink_to(outside)


def link_device(rng, path, outside):
  """A link to what never ends."""
  path.unlink()
  path.symlink_to("/dev/zero")


def link_loop(rng, path, outside):
  """A link to itself."""
  path.unlink()
  path.symlink_to(path.name)


def directory(rng, path, outside):
  """A folder where a file should be."""
  path.unlink()
  path.mkdir()


def missing(rng, path, outside):
  """The file is gone."""
  path.unlink()


# None of these may be taken for the file.
SPECIAL = (fifo, link_out, link_device, link_loop, directory, missing)
