import json
import os
import random
import time
from unicodedata import normalize

import pytest
from absl import logging

from lus_jax.errors import UserError
from tfds_builders import tables


@pytest.fixture
def warnings_seen(monkeypatch):
  seen = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: seen.append(text % values))
  return seen


@pytest.fixture
def table(tmp_path):
  def read(content, required=("video", "patient"), known=()):
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tables.read_table(path, required, "write one there", known)

  return read


def one_line(error):
  return "\n" not in str(error.value) and len(str(error.value)) < 2000


GOOD = "video,patient,day\r\n" + "".join(f"s{i}.png,p{i},1\r\n" for i in range(3))


@pytest.mark.parametrize(
  ("content", "number"),
  [
    (GOOD, 2),
    (b"\xef\xbb\xbf" + GOOD.encode(), 2),
    (GOOD.replace(",", ";"), 2),
    (GOOD.replace(",", "\t"), 2),
    (GOOD.replace(",", "\t").encode("utf-16"), 2),
    (GOOD.replace("\r\n", "\r"), 2),
    ("sep=;\r\n" + GOOD.replace(",", ";"), 3),
    ("sep=,\r\n" + GOOD, 3),
    ("".join(f"{i},{line}\r\n" for i, line in enumerate(GOOD.splitlines())), 2),
    (GOOD.replace("p0", '"  p0  "'), 2),
  ],
)
def test_what_excel_writes_is_read(table, content, number):
  rows = table(content)
  assert [row.cells["video"] for row in rows] == ["s0.png", "s1.png", "s2.png"]
  assert [row.cells["patient"] for row in rows] == ["p0", "p1", "p2"]
  assert rows[0].number == number
  assert rows[1].number_in("day", int, 0, 9, -1) == 1


@pytest.mark.parametrize(
  ("content", "part"),
  [
    (GOOD.replace("patient,day", "patient,patient,day"), "has no rows|two columns are called"),
    (GOOD.replace("video,patient", "Video,Patient"), "the required column 'video' is missing"),
    (GOOD.encode("utf-16-le"), "holds zero bytes"),
    (GOOD.replace("p0", "J\xfcrg").encode("latin-1"), "is not UTF-8"),
    (GOOD.replace(",", "|"), "the required column 'video' is missing"),
    ("", "the required column 'video' is missing"),
    ("video,patient\n" + "x" * 140_000 + ",p\n", "is not a table"),
    ('video,patient\na,p\n"b,p\nc,p\n', "unexpected end of data, near line 4"),
  ],
)
def test_tables_that_are_none(table, content, part):
  with pytest.raises(UserError, match=part) as error:
    table(content)[0].required("patient")
  assert one_line(error)


def test_numbers_with_a_comma_where_semicolons_divide(table):
  (row,) = table("video;patient;x;y\na;p;97,5;1,5,0\n")
  assert row.number_in("x", float, 0, 100, -1) == 97.5
  with pytest.raises(UserError, match="y '1,5,0' is not a number"):
    row.number_in("y", float, 0, 100, -1)
  (row,) = table('video,patient,x\na,p,"97,5"\n')
  with pytest.raises(UserError, match="x '97,5' is not a number"):
    row.number_in("x", float, 0, 100, -1)
  (row,) = table("video,patient,x\na,p,1_0\n")
  with pytest.raises(UserError, match="x '1_0' is not a whole number"):
    row.number_in("x", int, 0, 100, -1)


def test_wide_and_long_tables_take_a_moment(table):
  start = time.perf_counter()
  with pytest.raises(UserError, match="100002 columns; 10,000 are the most") as error:
    table("video,patient," + ",".join(f"c{i}" for i in range(100_000)) + "\na,p\n")
  assert one_line(error)
  with pytest.raises(UserError, match=r"'video' is missing \(there are: c0, .*9000 in all"):
    table(",".join(f"c{i}" for i in range(9000)) + "\na,p\n")
  known = ("video", "patient", "readmitted_30d")
  wide = "video,patient," + ",".join(f"c{i}" for i in range(9000)) + "\na,p\n"
  assert len(table(wide, known=known)[0].cells) == 9002
  rows = table("video,patient\n" + "".join(f"v{i},p\n" for i in range(20_000)))
  tables.refuse_repeats(rows, lambda row: row.cells["video"], "video")
  tables.warn_of_alike((row.cells["video"] for row in rows), "here", "videos", "")
  assert time.perf_counter() - start < 5


def test_files_that_are_none_are_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "pipe.csv")
  for name, part in (
    ("pipe.csv", "no file but a folder, a pipe"),
    ("", "no file but a folder"),
    ("gone", "does not exist; write"),
    ("pipe.csv/gone", "does not exist; write"),
    ("x" * 300, "cannot be read"),
  ):
    with pytest.raises(UserError, match=part) as error:
      tables.read_text(tmp_path / name, "write it there")
    assert one_line(error)


@pytest.mark.parametrize(
  ("text", "part"),
  [
    ("[" * 100_000, "nested too deeply|is not JSON"),
    ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    ('{"a": ' * 5000 + "1" + "}" * 5000, "nested too deeply"),
    ("1" * 10_000, "too many digits"),
    ('{"a": NaN}', "NaN is no number"),
    ("[-Infinity]", "-Infinity is no number"),
    ("[1e999]", "'1e999' is no number"),
    ('{"a": 1, "a": 2}', "'a' stands twice"),
    (f'{{"{normalize("NFC", "é")}": 1, "{normalize("NFD", "é")}": 2}}', "stands twice"),
    ('["\\ud800"]', "half a character"),
    ("{\n'a'}", "line 2 is not JSON"),
    ("", "line 1 is not JSON"),
  ],
)
def test_malformed_json(tmp_path, text, part):
  with pytest.raises(UserError, match=part) as error:
    tables.parse_json(tmp_path / "a.json", text)
  assert one_line(error) and "a.json" in str(error.value)


def test_json_and_cells_have_composed_accents(table):
  name = "plèvre"
  found = tables.parse_json(
    "a.json", json.dumps({normalize("NFD", name): [normalize("NFD", name)]})
  )
  assert found == {normalize("NFC", name): [normalize("NFC", name)]}
  (row,) = table(normalize("NFD", f"video,patient,{name}\né,ö,1\n"))
  assert row.cells == {"video": "é", "patient": "ö", name: "1"}


@pytest.mark.parametrize(
  ("names", "n_groups"),
  [
    (["007", "7", "P3", "p3", "11", "11.0"], 3),
    (["P03", "P3"], 1),
    (["p 3", "p_3", "P-3"], 1),
    (["1-1", "11", "1.10", "1.1", "p", "q", "", ""], 0),
    (["7", "7", "70", "0", "00"], 1),
    (["Zoë", "zoë"], 1),
    ([f"{zeros}{i}" for i in range(1, 41) for zeros in ("", "00")], 40),
  ],
)
def test_names_that_are_one_spelled_twice(warnings_seen, names, n_groups):
  tables.warn_of_alike(names, "manifest.csv", "patients", "the test is not independent")
  assert len(warnings_seen) == (n_groups > 0)
  for warning in warnings_seen:
    assert "manifest.csv: the patients '" in warning
    assert warning.count(" and '") >= min(n_groups, 3) > warning.count("; '")
    assert ("(40 such groups)" in warning) == (n_groups == 40)


def test_a_column_of_the_users_own_may_be_called_nearly_like_one_that_is_there(table):
  known = ("video", "patient", "day")
  (row,) = table("video,patient,patient_id\n1,2,3\n", known=known)
  assert row.cells["patient_id"] == "3"
  with pytest.raises(UserError, match="column 'patients' is not known; did you mean 'patient'"):
    table("video,patients\n1,2\n", required=("video",), known=known)
  with pytest.raises(UserError, match="column 'Patient' is not known; did you mean 'patient'"):
    table("video,patient,Patient\n1,2,3\n", known=known)


def test_a_copy_with_accents_written_in_another_way_is_the_same(tmp_path):
  found = []
  for form in ("NFC", "NFD"):
    directory = tmp_path / form
    directory.mkdir()
    for name in ("b", "Zoë"):
      (directory / normalize(form, name)).write_bytes(b"x")
    files = tables.contents(directory, directory.iterdir())
    found.append(tables.fingerprint(directory, [], files))
  assert found[0] == found[1]


def test_many_bytes_are_told_of(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  (tmp_path / "a").write_bytes(bytes(4_000_000))
  tables.contents(tmp_path, [tmp_path / "a"])
  assert capsys.readouterr().out == ""
  monkeypatch.setattr(tables, "MANY_BYTES", 4_000_000)
  tables.contents(tmp_path, [tmp_path / "a"])
  assert capsys.readouterr().out == "checking 1 files (0.0 GB)\n"


def test_a_file_that_is_a_link_out_of_its_folder_is_refused(tmp_path):
  (tmp_path / "disk").mkdir()
  (tmp_path / "disk" / "a.png").write_bytes(b"a")
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "images").symlink_to(tmp_path / "disk")
  image = tmp_path / "mine" / "images" / "a.png"
  (tmp_path / "disk" / "b.png").symlink_to(image)
  inside = tmp_path / "mine" / "raw.png"
  inside.write_bytes(b"c")
  (tmp_path / "disk" / "c.png").symlink_to(inside)  # stays in the data folder
  files = [image, image.with_name("b.png"), image.with_name("c.png")]
  files = tables.contents(tmp_path / "mine", files)
  # All of images/ may lie on another disk.
  assert len(tables.fingerprint(tmp_path / "mine", ["none.csv"], files)) == 64
  (tmp_path / "elsewhere").write_bytes(b"a")
  for name, given in (("images/d.png", []), ("patients.csv", ["patients.csv"])):
    link = tmp_path / "mine" / name
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{name} is a link that leaves"):
      tables.fingerprint(
        tmp_path / "mine", given, {} if given else tables.contents(tmp_path / "mine", [link])
      )
    link.unlink()


@pytest.fixture
def place(tmp_path):
  root = tmp_path / "mine" / "videos"
  (root / "sub").mkdir(parents=True)
  (tmp_path / "outside.png").write_bytes(b"x")
  for name in ("a.png", "sub/b.png", normalize("NFD", "élan.png")):
    (root / name).write_bytes(name.encode())
  (root / "link.png").symlink_to(root / "a.png")
  (root / "away.png").symlink_to(tmp_path / "outside.png")
  (root / "folder").symlink_to(tmp_path)
  (root / "round.png").symlink_to(root / "round.png")
  (root / "broken.png").symlink_to(root / "gone.png")
  os.link(root / "a.png", root / "hard.png")
  os.mkfifo(root / "pipe.png")

  place = tables.Place(root)

  def find(text, number=2):
    row = tables.Row("manifest.csv", number, {"video": text})
    path = place.path(row, "video", place.name(row, "video"))
    place.claim(row, [path])
    return path.relative_to(root)

  return find


def test_cells_name_files_of_their_folder(place):
  assert str(place("a.png")) == "a.png"
  assert str(place("videos/sub/b.png")) == "sub/b.png"
  # Composed in the table, decomposed on the disk.
  assert normalize("NFC", str(place(normalize("NFC", "élan.png")))) == normalize("NFC", "élan.png")


@pytest.mark.parametrize(
  ("text", "part"),
  [
    ("./a.png", "roundabout name; write 'a.png'"),
    ("sub//b.png", "write 'sub/b.png'"),
    ("sub/", "write 'sub'"),
    ("sub/../a.png", "leads out of its folder"),
    ("../videos/a.png", "leads out of its folder"),
    ("..", "leads out of its folder"),
    (".", "roundabout name; write a name"),
    ("/", "absolute path"),
    ("/etc/passwd", "absolute path; write it relative to mine/videos"),
    ("C:\\a.png", "absolute path"),
    ("~/a.png", "absolute path"),
    ("sub\\b.png", "does not exist.*write / between folders"),
    ("gone.png", "does not exist.*video is relative to .*videos"),
    ("away.png", "is a link that leaves"),
    ("folder/outside.png", "is a link that leaves"),
    ("round.png", "cannot be read|is neither"),
    ("broken.png", "is neither a file nor a folder"),
    ("pipe.png", "is neither a file nor a folder"),
    ("x" * 256, "too long for a file's name"),
    ("a\0.png", "control character"),
    ("a\n.png", "control character"),
    ("a.png/b.png", "does not exist|cannot be read"),
    ("", "video is empty"),
  ],
)
def test_cells_that_leave_their_folder_or_name_nothing(place, text, part):
  with pytest.raises(UserError, match=f"manifest.csv row 2: .*{part}") as error:
    place(text)
  assert one_line(error)


@pytest.mark.parametrize("other", ["link.png", "hard.png"])
def test_one_file_under_two_names(place, other):
  place("a.png", 2)
  with pytest.raises(UserError, match="row 3: .*is the same file as .*a.png of row 2"):
    place(other, 3)


def test_a_whole_folder_may_be_a_link(tmp_path):
  (tmp_path / "disk").mkdir()
  (tmp_path / "disk" / "a.png").write_bytes(b"")
  (tmp_path / "videos").symlink_to(tmp_path / "disk")
  row = tables.Row("manifest.csv", 2, {"video": "a.png"})
  place = tables.Place(tmp_path / "videos")
  assert place.path(row, "video", place.name(row, "video")).is_file()


@pytest.mark.parametrize(
  "name", ["", " ", "..", "a/b", "a\\b", "a\n", "x" * 300, " a", "a ", "\ud800"]
)
def test_names_that_no_file_can_have(name):
  with pytest.raises(UserError, match="rename it") as error:
    tables.check_file_name(name, "Class")
  assert one_line(error)
  tables.check_file_name("B-Linie (konfl.) & <b>50%", "Class")


def test_fuzzed_tables_and_json_are_read_or_refused_in_a_line(tmp_path):
  rng = random.Random(0)
  table = GOOD.replace(",1", ",1.5").replace("p1", '"Müller, J."').encode()
  dataset = {"name": "a", "licence": "b", "classes": ["c", "d"], "thin": ["c"], "x": [1e3, {}]}
  dataset = json.dumps(dataset).encode()
  alphabet = b"\0\xff\xfe\"',;\t\r\n[]{}:\\u-0123456789eENaI/. "
  path = tmp_path / "table"
  for number in range(100):
    for whole, read in (
      (table, lambda p: tables.read_table(p, ("video", "patient"), "mend", ("video", "patient"))),
      (dataset, lambda p: tables.read_dataset(p, ("name", "classes", "thin", "patients"))),
    ):
      data = bytearray(whole)
      for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:
          data = data[:at]
        elif kind == 1:
          data[at:at] = bytes(rng.choices(alphabet, k=rng.randrange(1, 9)))
        elif kind == 2:
          data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 3:
          data[at:at] = data[at : at + 20] * rng.randrange(1, 50)
        else:
          data[at:at] = rng.choice([b"[", b'{"a":', b"9"]) * rng.choice([3, 5000])
      path.write_bytes(bytes(data))
      try:
        read(path)
      except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 5000, (number, str(error)[:200])
