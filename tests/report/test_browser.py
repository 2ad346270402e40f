"""The page in a real browser: no error, no request, no sideways scrolling, a slider that works."""

import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
OPTIONS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--enable-logging=stderr",
  "--virtual-time-budget=3000",
  "--window-size=1700,900",
  "--dump-dom",
]
# A window cannot be narrower than 500 pixels; a frame in it can.
FRAME = """<!DOCTYPE html><title>frame</title><iframe width="{width}" height="900" src="{source}"
style="border:0"></iframe><script>
addEventListener("message", (event) => {{
  const out = document.createElement("script");
  out.type = "application/json";
  out.id = "found";
  out.textContent = event.data;
  document.body.append(out);
}});
</script>"""
LISTEN = """<script>
window.seen = [];
addEventListener("error", (e) => seen.push(String(e.message || e.target.outerHTML)), true);
addEventListener("securitypolicyviolation", (e) => seen.push(e.blockedURI));
</script>"""
CHECK = """<script>
addEventListener("load", () => {
  const viewers = [...document.querySelectorAll(".viewer")].map((viewer) => {
    const input = viewer.querySelector("input");
    const steps = [...viewer.querySelectorAll(".step")];
    const look = () => {
      const visible = steps.filter((step) => step.checkVisibility());
      return [visible.map((step) => step.dataset.threshold), viewer.querySelector("output").value,
              input.getAttribute("aria-valuetext")];
    };
    input.focus();
    const focused = document.activeElement === input;
    input.value = input.min;
    const moved = [];
    for (let i = 0; i < steps.length; i++) {
      input.dispatchEvent(new Event("input", {bubbles: true}));
      moved.push(look());
      input.stepUp();
    }
    return {focused, moved, control: input.checkVisibility()};
  });
  const images = [...document.images];
  const resources = performance.getEntriesByType("resource").map((entry) => entry.name);
  const found = {
    seen, viewers, images: images.length,
    broken: images.filter((image) => image.naturalWidth === 0).length,
    requests: resources.filter((name) => !name.startsWith("data:")),
    width: innerWidth, content: document.documentElement.scrollWidth,
  };
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""


def visit(workdir, tmp_path, width):
  page = workdir / "report" / "index.html"
  text = page.read_text()
  assert text.count("<head>") == text.count("</body>") == 1
  checked = tmp_path / "checked.html"
  checked.write_text(
    text.replace("<head>", "<head>" + LISTEN).replace("</body>", CHECK + "</body>")
  )
  frame = tmp_path / "frame.html"
  frame.write_text(FRAME.format(width=width, source=checked.as_uri()))
  result = subprocess.run(
    [BROWSER, *OPTIONS, f"--user-data-dir={tmp_path}/profile", frame.as_uri()],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert "CONSOLE" not in result.stderr
  found = re.search(r'<script type="application/json" id="found">(.*?)</script>', result.stdout)
  assert found, result.stderr[-2000:]
  return json.loads(found[1])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize(
  ("width", "run", "names"),
  [
    (400, "phantom", ["> 0%", "20%", "40%", "50%", "60%", "80%", "100%"]),
    (1000, "one class, one threshold", ["60%"]),
    (1600, "two seeds", ["> 0%", "50%"]),
  ],
)
def test_the_page_works(built, tmp_path, width, run, names):
  found = visit(built(run), tmp_path, width)
  assert found["seen"] == []
  assert found["requests"] == []
  assert found["images"] > 10 and found["broken"] == 0
  assert found["width"] == width
  assert found["content"] <= width
  assert len(found["viewers"]) == 3
  for viewer in found["viewers"]:
    assert viewer["control"] == viewer["focused"] == (len(names) > 1)
    assert viewer["moved"] == [[[name], name, name] for name in names]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize(
  ("width", "run", "images"),
  [
    (400, "other targets", 9),
    (1000, "study", 20),
    (1600, "small", 3),
    (400, "study", 20),
    (400, "several raters", 40),
    (1000, "few raters", 40),
  ],
)
def test_what_comes_after_the_segmentation_fits(built, tmp_path, width, run, images):
  found = visit(built(run), tmp_path, width)
  assert found["seen"] == []
  assert found["requests"] == []
  assert found["images"] >= images and found["broken"] == 0
  assert found["width"] == width
  assert found["content"] <= width
