// The page: what is open, what the hand does, and what is sent. paint.js holds the confidences,
// view.js draws them.

import { Painting, between, join, leastValue } from "./paint.js";
import { blend, makeView } from "./view.js";

const $ = (id) => document.getElementById(id);
const parameters = new URLSearchParams(location.search);
const AUTOSAVE = 1500; // ms after the last stroke
const RETRY = 2500; // ms
const IDLE = 20_000; // ms without a hand that count as work
const CACHED = 384 * 2 ** 20; // bytes of frames kept here
const KEPT = 8; // paintings with their history kept here
const CHUNK = [2 * 2 ** 20, 32 * 2 ** 20]; // bytes of frames asked for together: at first, at most
const RATE = 20; // frames per second of a clip that does not say

let folder; // what the server says of the data set
let clip = null; // {video, frames, height, width, rate}
let frame = 0;
let doc = null; // the open frame's painting and what is known of it
const docs = new Map(); // by "video\nframe", in order of use
const images = new Map(); // grey frames of the clip by number
const asked = new Set(); // numbers of frames that are on their way
let others = null; // in a review: masks by annotator
const origins = new Map(); // and of each what a model offered and no hand has touched
let look = { x: 0, y: 0, scale: 1 };
let fitted = true; // whether the scan, or the whole frame, is to be seen, whatever the window's size
let whole = false; // the whole frame
let view;
let stale = true;

const TOOLS = {
  brush: { name: "Brush", size: 12, softness: 0.5, tip: "Drag to paint. Strokes that overlap leave the higher confidence." },
  eraser: { name: "Eraser", size: 14, softness: 0.3, tip: "Drag to take away, softly at the rim." },
  lower: { name: "Lower", size: 14, softness: 0.3, tip: "Drag to take what is higher down to the confidence." },
  line: { name: "Line", size: 4, softness: 0.6, tip: "Click along a thin line; Enter or a double click ends it, Backspace takes back a point." },
  fill: { name: "Fill", size: 4, softness: 0, tip: "Drag around, or click corners and press Enter. Shift-click fills what a painted outline encloses. The edge fades over radius times softness." },
  band: { name: "Between lines", size: 4, softness: 0, tip: "Click along one line, Enter; along the other, Enter: what lies between is filled. The edge fades over radius times softness." },
  pan: { name: "Pan", size: 12, softness: 0.5, tip: "Drag to move the picture; the wheel zooms at the pointer." },
};

const state = {
  tool: "brush", k: 0, confidence: 100, pressure: true,
  visible: [], cut: false, threshold: 0.6, contrast: 0, brightness: 0, opacity: 0.75, masks: true, heat: false,
};

// --- What can be done, by button and by key -------------------------------------------------------

const ACTIONS = [
  ["Tools", "brush", ["b"], "Brush: paint confidence", () => choose("brush")],
  ["Tools", "eraser", ["e"], "Eraser", () => choose("eraser")],
  ["Tools", "lower", ["r"], "Lower to the confidence", () => choose("lower")],
  ["Tools", "line", ["l"], "Line of points", () => choose("line")],
  ["Tools", "fill", ["f"], "Fill an outline", () => choose("fill")],
  ["Tools", "band", ["w"], "Fill between two lines", () => choose("band")],
  ["Tools", "pan", ["h"], "Pan (or hold Space, or the right button)", () => choose("pan")],
  ["Tools", "finish", ["Enter"], "End a line or outline", () => finish()],
  ["Tools", "back", ["Backspace"], "Take back its last point", () => backPoint()],
  ["Tools", "escape", ["Escape"], "Give it up; close the protocol", () => (stroke || points.length || firstLine || $("protocol").hidden ? giveUp() : toggleProtocol())],
  ["Brush", "level", ["1", "2", "…", "9", "0"], "Confidence 10 % to 90 %, 100 %", null],
  ["Brush", "confidence-up", [".", "Shift+."], "Confidence up by 1 %, by 5 %", (e) => setConfidence(state.confidence + (e?.shiftKey ? 5 : 1))],
  ["Brush", "confidence-down", [",", "Shift+,"], "Confidence down by 1 %, by 5 %", (e) => setConfidence(state.confidence - (e?.shiftKey ? 5 : 1))],
  ["Brush", "smaller", ["["], "Smaller (or Shift and the wheel)", () => setSize(tool().size / 1.15)],
  ["Brush", "larger", ["]"], "Larger", () => setSize(tool().size * 1.15)],
  ["Brush", "harder", ["Shift+["], "Harder", () => setSoftness(tool().softness - 0.1)],
  ["Brush", "softer", ["Shift+]"], "Softer", () => setSoftness(tool().softness + 0.1)],
  ["Brush", "pen", ["Shift+p"], "Pen pressure on, off", () => $("pressure").click()],
  ["Classes", "previous-class", ["q"], "Previous class", () => pick(state.k - 1)],
  ["Classes", "next-class", ["a"], "Next class", () => pick(state.k + 1)],
  ["Classes", "show-class", ["v"], "Show, hide the class", () => toggleVisible(state.k)],
  ["Classes", "lock-class", ["k"], "Lock, unlock the class", () => toggleLocked(state.k)],
  ["Classes", "only-class", ["o"], "Only this class, all", () => only()],
  ["Classes", "masks", ["m"], "Hide, show all masks", () => { state.masks = !state.masks; refresh(); }],
  ["View", "cut", ["t"], "What training sees, on and off", () => { state.cut = !state.cut; refresh(); }],
  ["View", "threshold-up", ["Shift+ArrowUp"], "Threshold up", () => setThreshold(state.threshold + 0.05)],
  ["View", "threshold-down", ["Shift+ArrowDown"], "Threshold down", () => setThreshold(state.threshold - 0.05)],
  ["View", "zoom-in", ["+", "="], "Zoom in (or the wheel)", () => zoom(1.25)],
  ["View", "zoom-out", ["-"], "Zoom out", () => zoom(0.8)],
  ["View", "fit", ["z"], "The scan; again: the whole frame", () => { whole = fitted && Boolean(clip.area) && !whole; fit(); }],
  ["View", "contrast-up", ["c", "Shift+c"], "Contrast up, down", (e) => setRange("contrast", state.contrast + (e?.shiftKey ? -10 : 10))],
  ["View", "brightness-up", ["i", "Shift+i"], "Brightness up, down", (e) => setRange("brightness", state.brightness + (e?.shiftKey ? -10 : 10))],
  ["View", "opacity-up", ["u", "Shift+u"], "Masks stronger, fainter", (e) => setRange("opacity", 100 * state.opacity + (e?.shiftKey ? -10 : 10))],
  ["View", "reset", ["Shift+z"], "Plain contrast and brightness", () => { setRange("contrast", 0); setRange("brightness", 0); setRange("opacity", 100 * folder.opacity); }],
  ["Frames", "earlier", ["ArrowLeft", "Shift+ArrowLeft"], "Frame back, 10 back", (e) => goByHand(frame - (e?.shiftKey ? 10 : 1))],
  ["Frames", "later", ["ArrowRight", "Shift+ArrowRight"], "Frame on, 10 on", (e) => goByHand(frame + (e?.shiftKey ? 10 : 1))],
  ["Frames", "first", ["Home"], "First frame", () => goByHand(0)],
  ["Frames", "last", ["End"], "Last frame", () => goByHand(clip.frames - 1)],
  ["Frames", "play", ["p"], "Play to the end, stop", () => play()],
  ["Frames", "slower", ["Shift+s"], "Play slower", () => setSpeed(-1)],
  ["Frames", "faster", ["Shift+f"], "Play faster", () => setSpeed(1)],
  ["Frames", "earlier-clip", ["PageUp"], "Clip before", () => goClip(-1)],
  ["Frames", "later-clip", ["PageDown"], "Next clip", () => goClip(1)],
  ["Frames", "next", ["n"], "Next frame to do", () => goNext(1)],
  ["Frames", "previous", ["Shift+n"], "Frame to do before", () => goNext(-1)],
  ["Frames", "copy", ["d"], "Copy this label to the next labelled frame", () => copyOn()],
  ["Frames", "skip", ["s"], "Skip this frame, with a comment", () => askNote("skip")],
  ["Frames", "flag", ["y"], "Flag this frame, with a comment", () => askNote("flag")],
  ["Page", "undo", ["Ctrl+z"], "Undo", () => step("undo")],
  ["Page", "redo", ["Ctrl+Shift+z", "Ctrl+y"], "Redo", () => step("redo")],
  ["Page", "save", ["Ctrl+s"], "Save now (it saves by itself); an empty frame then shows nothing", () => save(doc, { always: true })],
  ["Page", "history", ["Shift+h"], "Revisions of this frame", () => showHistory()],
  ["Page", "protocol", ["g"], "Protocol beside the frame", () => toggleProtocol()],
  ["Page", "prelabel", ["j"], "Offer the model's pre-label", () => offerPrelabel()],
  ["Page", "accept", ["Shift+Enter"], "The offered masks of this frame are right as they are", () => accept()],
  ["Page", "member", ["Shift+j"], "Next model", () => nextMember()],
  ["Page", "help", ["?"], "These shortcuts", () => $("help").open || $("help").showModal()],
  ["Review", "heat", ["x"], "Disagreement over the frame", () => { if (folder.review) { state.heat = !state.heat; refresh(); } }],
  ["Review", "mean", ["Shift+1"], "Consensus from the mean", () => startConsensus("mean")],
  ["Review", "median", ["Shift+2"], "… from the median", () => startConsensus("median")],
  ["Review", "least", ["Shift+3"], "… from what all painted at least", () => startConsensus("least")],
  ["Review", "most", ["Shift+4"], "… from what anyone painted", () => startConsensus("most")],
  ["Review", "take", ["Alt+1", "…", "Alt+9"], "Take the class of the first … annotator", null],
];
const BY_NAME = Object.fromEntries(ACTIONS.map((action) => [action[1], action]));

function keyName(event) {
  let key = event.key;
  // What the Shift and Alt keys make of a digit, a bracket or a point depends on the keyboard.
  if (/^Digit\d$/.test(event.code) && (event.shiftKey || event.altKey)) key = event.code.slice(5);
  if (event.code === "BracketLeft") key = "[";
  if (event.code === "BracketRight") key = "]";
  if (event.shiftKey) key = { ">": ".", ":": ".", "<": ",", ";": "," }[key] ?? key;
  if (key.length === 1) key = key.toLowerCase();
  const named = "?+".includes(key);
  return `${event.ctrlKey || event.metaKey ? "Ctrl+" : ""}${event.altKey ? "Alt+" : ""}${event.shiftKey && !named ? "Shift+" : ""}${key}`;
}

function onKey(event) {
  if (event.key === " " && !event.target.closest("button, select, input[type=checkbox]")) {
    event.preventDefault();
    setSpace(true);
    return;
  }
  if (document.querySelector("dialog[open]") || event.target.closest("textarea, select")) return;
  const name = keyName(event);
  // A range under the focus keeps its own arrows, but for the slider of frames, which does the same.
  if (event.target.matches("input[type=range]:not(#frame)") && /Arrow|Home|End/.test(name)) return;
  if (event.target.closest("button") && name === "Enter") return;
  if (/^\d$/.test(name)) {
    event.preventDefault();
    setConfidence(name === "0" ? 100 : 10 * Number(name));
    return;
  }
  if (/^Alt\+[1-9]$/.test(name) && others) {
    event.preventDefault();
    takeClass([...others.keys()][Number(name.at(-1)) - 1]);
    return;
  }
  const action = ACTIONS.find(([, , keys, , run]) => run && keys.includes(name));
  if (!action) return;
  event.preventDefault();
  perform(action[1], event);
}

// What changes, saves or notes something of a frame waits for it; a clip that does not open can be
// left and noted.
const OF_FRAME = new Set(["finish", "copy", "undo", "redo", "save", "history", "prelabel", "accept", "mean", "median", "least", "most"]);
const NOTES = new Set(["skip", "flag"]);
const WITHOUT_CLIP = new Set([...NOTES, "help", "protocol", "escape", "earlier-clip", "later-clip", "next", "previous"]);

function isReady() {
  const { state: now } = document.body.dataset;
  if (now !== "ready") toast(now === "failed" ? "Nothing is open here: try again, or skip it (S)." : "The frame is being opened; try again.");
  return now === "ready";
}

function perform(name, event) {
  if (!clip && !WITHOUT_CLIP.has(name) && !OF_FRAME.has(name)) return;
  if (OF_FRAME.has(name) || (NOTES.has(name) && document.body.dataset.state !== "failed")) {
    if (!isReady()) return;
  }
  BY_NAME[name][4](event);
}

// --- Talking with the server ----------------------------------------------------------------------

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw Object.assign(new Error("The server does not answer; is the command still running?"), { gone: true });
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({ error: `The server says ${response.status}.` }));
    throw Object.assign(new Error(said.error), { status: response.status, said });
  }
  return response;
}

const query = (values) => new URLSearchParams(values).toString();
const getJson = async (path) => (await ask(path)).json();

async function getPacked(path) {
  const bytes = new Uint8Array(await (await ask(path)).arrayBuffer());
  const length = new DataView(bytes.buffer).getUint32(0, true);
  return [JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length))), bytes.subarray(4 + length)];
}

function post(path, header, planes = []) {
  const head = new TextEncoder().encode(JSON.stringify(header)), length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, head.length, true);
  return ask(path, { method: "POST", body: new Blob([length, head, ...planes]) }).then((r) => r.json());
}

/** The classes' planes of {width, height}, one after the other in some bytes. */
function cutPlanes(bytes, { width, height }) {
  const n = width * height;
  return folder.classes.map((_, k) => bytes.slice(k * n, (k + 1) * n));
}

// --- Opening clips and frames ---------------------------------------------------------------------

async function openClip(video, at = null) {
  stop();
  const turn = ++opening, left = leave();
  // What a hand does from here on is not for the clip that was left, even if no other opens.
  clearTimeout(later);
  cancelPoints();
  clip = doc = others = null;
  images.clear();
  asked.clear();
  delete document.body.dataset.read;
  document.body.dataset.state = "loading";
  $("failure").hidden = true;
  $("video").value = video;
  $("frame-number").textContent = "";
  showSaved();
  refresh();
  await left;
  if (turn !== opening) return;
  let found;
  try {
    found = await getJson(`api/video?${query({ video })}`);
  } catch (error) {
    if (turn === opening) fail(error, () => openClip(video, at));
    return;
  }
  if (turn !== opening) return;
  clip = { video, ...found };
  $("frame").max = clip.frames - 1;
  $("play").disabled = clip.frames === 1;
  $("rate").textContent = clip.frames === 1 ? "" : `× ${Math.round(10 * (clip.rate ?? RATE)) / 10}/s`;
  $("rate").title = clip.rate ? "Frames per second of the clip" : "Frames per second; the clip does not say how many";
  const mine = folder.work.filter((w) => w.video === video);
  const first = mine.find((w) => !w.done && w.note !== "skip") ?? mine[0];
  frame = clamp(Math.floor(at ?? first?.frame ?? 0) || 0, 0, clip.frames - 1);
  view.resize(clip.width, clip.height, folder.classes.length);
  whole = false;
  fit();
  await openFrame();
}

/** Says on the stage why nothing can be painted, and how to go on. */
function fail(error, again) {
  document.body.dataset.state = "failed";
  $("failure-text").textContent = error.message;
  $("again").onclick = again;
  $("pass").hidden = !folder;
  $("pass").textContent = clip ? "Skip this frame" : "Skip this clip";
  $("failure").hidden = false;
}

async function image(number) {
  if (!images.has(number)) await fetchImages(clip, number, 1);
  return images.get(number);
}

/** Which frames of the clip are kept here: all, or as many as fit around the open one. */
function kept() {
  const most = Math.max(2, Math.floor(CACHED / (clip.width * clip.height)));
  const first = clamp(frame - Math.floor(most / 4), 0, Math.max(0, clip.frames - most));
  return [first, Math.min(clip.frames, first + most)];
}

async function fetchImages(of, start, count) {
  const [header, bytes] = await getPacked(`api/frames?${query({ video: of.video, start, count })}`);
  if (of !== clip) return;
  const n = of.width * of.height, [first, stop] = kept();
  // Parts of the answer, not copies.
  for (let i = 0; i < header.count; i++) images.set(start + i, bytes.subarray(i * n, (i + 1) * n));
  for (const key of images.keys()) if ((key < first || key >= stop) && key !== frame) images.delete(key);
}

/** The first frames from the open one on, then those before it, that are kept and not here yet. */
function missing(most) {
  const [first, stop] = kept();
  for (const [from, to] of [[frame, stop], [first, frame]]) {
    for (let i = from; i < to; i++) {
      if (images.has(i) || asked.has(i)) continue;
      let count = 1;
      while (count < most && i + count < to && !images.has(i + count) && !asked.has(i + count)) count++;
      return [i, count];
    }
  }
  return null;
}

let readers = 0;

/** Reads ahead until all that is kept is here; the next frame that is opened tries again. */
async function readAhead() {
  // While one answer is taken apart the server makes the next.
  if (!clip || readers >= 2) return;
  readers++;
  const of = clip, n = of.width * of.height;
  try {
    for (let bytes = CHUNK[0]; of === clip; bytes = Math.min(2 * bytes, CHUNK[1])) {
      const next = missing(Math.max(1, Math.floor(bytes / n)));
      if (!next) break;
      const [start, count] = next, numbers = Array.from({ length: count }, (_, i) => start + i);
      numbers.forEach((i) => asked.add(i));
      try {
        await fetchImages(of, start, count);
      } finally {
        if (of === clip) numbers.forEach((i) => asked.delete(i));
      }
    }
    if (of === clip && !asked.size && !missing(1)) document.body.dataset.read = String(images.size);
  } catch {
    // Whoever opens a frame that is not here is told.
  } finally {
    readers--;
    if (of !== clip) readAhead();
  }
}

let opening = 0;

async function openFrame() {
  if (!clip) return;
  const turn = ++opening, key = `${clip.video}\n${frame}`;
  document.body.dataset.state = "loading";
  $("failure").hidden = true;
  cancelPoints();
  showFrameNumber();
  try {
    const grey = await image(frame);
    if (turn !== opening) return;
    view.setFrame(grey);
    readAhead();
    readAhead();
    if (!docs.has(key)) {
      const at = { video: clip.video, frame };
      const [header, bytes] = await getPacked(`api/masks?${query(at)}`);
      if (turn !== opening) return;
      const painting = new Painting(clip.width, clip.height, cutPlanes(bytes, clip));
      docs.set(key, { ...at, painting, saved: 0, seconds: 0 });
      take(docs.get(key), header);
    }
    doc = docs.get(key);
    docs.delete(key);
    docs.set(key, doc);
    doc.seconds += watched;
    watched = 0;
    doc.painting.locked = doc.painting.locked.map((_, k) => state.locked.has(k));
    doc.painting.stale = doc.painting.stale.map(() => doc.painting.box(0, 0, clip.width, clip.height));
    forget();
    if (folder.review) await openReview(turn);
    if (turn !== opening) return;
  } catch (error) {
    if (turn === opening) fail(error, openFrame);
    return;
  }
  document.body.dataset.state = "ready";
  showSaved();
  refresh();
}

/** What the server says of how masks came about, with classes by number. */
function marksOf({ prelabelled, touched }) {
  const numbers = (names) => new Set(names.map((name) => folder.classes.findIndex((c) => c.name === name)));
  return { offered: numbers(prelabelled), touched: numbers(touched) };
}

/** What the server says of a revision that is shown now. */
function take(one, header) {
  one.revision = header.revision;
  one.review = header.review;
  // What a hand saved is no consensus where it did not see the others.
  one.byHand = header.saved === "hand" && (!folder.review || header.review === "yes");
  one.prelabel = header.prelabel;
  Object.assign(one.painting, marksOf(header));
}

/** The classes, by number, that hold what a model offered and no hand has touched. */
const untouchedOf = ({ offered, touched }) => [...offered].filter((k) => !touched.has(k));

/** Marks of classes as a model offers them. */
const asOffered = (classes) => new Map(classes.map((k) => [k, { touched: false, offered: true }]));

/** Drops paintings that were not open for long and hold nothing unsaved. */
function forget() {
  for (const [key, one] of docs) {
    if (docs.size <= KEPT) break;
    if (one !== doc && one.saved === one.painting.version && !one.saving && one.conflict === undefined) docs.delete(key);
  }
}

/** What a hand has begun is ended, and what is unsaved sent. */
async function leave() {
  endStroke();
  if (doc) await save(doc);
}

let later = null;

function go(number) {
  if (!clip) return;
  number = clamp(Math.round(number), 0, clip.frames - 1);
  if (number === frame) return;
  endStroke();
  if (doc) save(doc);
  doc = others = null; // those of the frame that was left
  frame = number;
  showFrameNumber();
  opening++; // whatever was being opened
  document.body.dataset.state = "loading";
  const grey = images.get(frame);
  if (grey) view.setFrame(grey);
  const known = docs.get(`${clip.video}\n${frame}`);
  // While it plays frames are shown alone: nobody could tell which of them are not painted yet.
  showMasks(playing ? null : known?.painting ?? null);
  requestDraw();
  clearTimeout(later);
  if (!playing) later = setTimeout(openFrame, 60);
}

const blank = { bytes: null };

/** Shows a painting's masks, or none. */
function showMasks(painting) {
  const box = { x0: 0, y0: 0, x1: clip.width, y1: clip.height };
  const n = clip.width * clip.height;
  if (blank.bytes?.length !== n) blank.bytes = new Uint8Array(n);
  folder.classes.forEach((_, k) => view.setMask(k, painting ? painting.planes[k] : blank.bytes, box));
}

let playing = null;
let watched = 0; // seconds, that count for the frame where it stops

function play() {
  if (playing) {
    stop();
    return;
  }
  if (clip.frames === 1) return;
  leave();
  playing = { from: frame === clip.frames - 1 ? 0 : frame, began: null };
  document.body.dataset.playing = "";
  $("play").setAttribute("aria-pressed", "true");
  $("play").setAttribute("aria-label", "Stop");
  doc = others = null;
  opening++;
  clearTimeout(later);
  document.body.dataset.state = "loading";
  showMasks(null);
  go(playing.from);
  refresh();
  requestAnimationFrame(tick);
}

function tick(now) {
  if (!playing) return;
  const rate = (clip.rate ?? RATE) * Number($("speed").value);
  playing.began ??= now;
  const number = Math.min(clip.frames - 1, playing.from + Math.floor(((now - playing.began) / 1000) * rate));
  if (images.has(number)) {
    go(number);
    if (number === clip.frames - 1) {
      stop();
      return;
    }
  } else {
    // It goes on from here when the frame is there, and is opened at once where it cannot come.
    playing = { from: number, began: null };
    if (!asked.size && !readers) {
      frame = number;
      stop();
      return;
    }
  }
  if (number + 1 < clip.frames && !images.has(number + 1)) readAhead();
  requestAnimationFrame(tick);
}

function stop() {
  if (!playing) return;
  playing = null;
  delete document.body.dataset.playing;
  $("play").setAttribute("aria-pressed", "false");
  $("play").setAttribute("aria-label", BY_NAME.play[3]);
  openFrame();
}

function setSpeed(direction) {
  const speed = $("speed");
  speed.selectedIndex = clamp(speed.selectedIndex + direction, 0, speed.options.length - 1);
  restart();
}

/** Goes on at another speed from the frame that is shown. */
function restart() {
  if (playing) playing = { from: frame, began: null };
}

function goClip(direction) {
  const video = folder.videos[folder.videos.indexOf($("video").value) + direction];
  if (video) openClip(video);
  else toast(direction > 0 ? "This is the last clip." : "This is the first clip.");
}

function goNext(direction) {
  const left = toDo();
  const order = (w) => folder.videos.indexOf(w.video) * 1e9 + w.frame;
  // Beside a clip that does not open the next one, not another of its frames.
  const here = order(clip ? { video: clip.video, frame } : { video: $("video").value, frame: direction > 0 ? 1e9 - 1 : 0 });
  const next = direction > 0 ? left.find((w) => order(w) > here) ?? left[0] : left.findLast((w) => order(w) < here) ?? left.at(-1);
  if (!next) toast("Nothing is left to do in this folder.");
  else if (next.video === clip?.video && next.frame === frame) toast("Nothing else is left to do in this folder.");
  else if (next.video === clip?.video) goByHand(next.frame);
  else openClip(next.video, next.frame);
}

/** Goes to a frame, and stops what plays. */
function goByHand(number) {
  if (playing) stop();
  go(number);
}

async function copyOn() {
  if (!doc) return;
  const before = doc, from = doc.painting.planes.map((plane) => plane.slice());
  const untouched = untouchedOf(doc.painting);
  const next = folder.work.find((w) => w.video === clip.video && w.frame > frame)?.frame ?? frame + 1;
  if (next >= clip.frames) {
    toast("This is the last frame.");
    return;
  }
  await leave();
  if (doc !== before) return; // another frame was chosen meanwhile
  go(next);
  clearTimeout(later);
  await openFrame();
  if (doc?.video !== before.video || doc.frame !== next) return;
  const copied = doc;
  copied.prelabel ||= before.prelabel;
  change(folder.classes.map((_, k) => k), (painting) => {
    from.forEach((plane, k) => painting.replace(k, plane));
  }, asOffered(untouched));
  toast(`Copied from frame ${before.frame}; Ctrl+Z takes it back.`);
}

// --- Saving ---------------------------------------------------------------------------------------

let autosave = null;

function unsaved(one) {
  return one.saved !== one.painting.version;
}

function touch() {
  showSaved();
  clearTimeout(autosave);
  autosave = setTimeout(() => { if (doc && !stroke) save(doc); else touch(); }, AUTOSAVE);
}

async function save(one, { always = false, aside = false, base = null } = {}) {
  if (!one) return;
  while (one.saving) await one.saving;
  if (!aside && base === null && (one.conflict !== undefined || !(unsaved(one) || always))) {
    if (one.conflict !== undefined && always) askConflict(one);
    return;
  }
  if (always && !unsaved(one) && one.byHand) {
    toast("This is saved already.");
    return;
  }
  one.saving = send(one, { aside, base, byHand: always || aside || base !== null }).finally(() => { one.saving = null; showSaved(); });
  await one.saving;
}

async function send(one, { aside, base, byHand }) {
  const { painting, video, frame: number } = one, version = painting.version, seconds = one.seconds;
  const names = (set) => [...set].map((k) => folder.classes[k].name);
  showSaved("saving");
  try {
    const said = await post(`api/save?${query({ video })}`, {
      video, frame: number, shape: [painting.planes.length, painting.height, painting.width],
      base: base ?? one.revision, aside, seconds, by_hand: byHand,
      touched: names(painting.touched), prelabel: one.prelabel, prelabelled: names(painting.offered),
    }, painting.planes);
    // Where all is undone nothing stands that could keep the time.
    if (said.revision) one.seconds -= seconds;
    one.failed = null;
    if (aside) return;
    one.revision = said.revision;
    one.review = said.review;
    one.byHand = byHand;
    one.saved = version;
    delete one.conflict;
    folder.work = said.work;
    fillWork();
  } catch (error) {
    if (error.status === 409) {
      one.failed = null;
      one.conflict = error.said.revision;
      askConflict(one);
    } else {
      one.failed = error.message;
      toast(error.message, true);
      clearTimeout(one.retry);
      one.retry = setTimeout(() => { if (one.failed) save(one, { always: byHand, aside, base }); }, RETRY);
    }
  }
}

function showSaved(what = null) {
  const all = [...docs.values()];
  const failed = all.find((one) => one.failed), conflict = all.find((one) => one.conflict !== undefined);
  const saved = what ?? (failed ? "failed" : conflict ? "conflict" : all.some((one) => one.saving && one !== doc) ? "saving" : all.some(unsaved) ? "no" : "yes");
  document.body.dataset.saved = saved;
  document.body.dataset.revision = doc?.revision ?? "";
  $("status-text").textContent = {
    saving: "Saving", failed: "Not saved: trying again", conflict: "Saved elsewhere: choose", no: "Not saved yet",
    yes: !doc?.revision ? "Nothing painted yet" : doc.review === "begun" ? "No consensus until Ctrl+S" : "Saved",
  }[saved];
}

function askConflict(one) {
  showSaved();
  if ($("conflict").open) return;
  $("conflict").returnValue = "";
  $("conflict-which").textContent = `Frame ${one.frame} of ${one.video}`;
  $("conflict").showModal();
  $("conflict").onclose = async () => {
    const answer = $("conflict").returnValue;
    if (answer === "mine") await save(one, { base: one.conflict });
    else if (answer === "aside" || answer === "theirs") {
      if (answer === "aside") {
        await save(one, { aside: true });
        if (one.failed) return;
      }
      await takeTheirs(one, answer === "aside" ? "Yours is kept as another revision (History)." : "Ctrl+Z brings yours back.");
    }
  };
}

async function takeTheirs(one, text) {
  const [header, bytes] = await getPacked(`api/masks?${query({ video: one.video, frame: one.frame })}`);
  const planes = cutPlanes(bytes, one.painting);
  one.painting.locked.fill(false);
  one.painting.begin(planes.map((_, k) => k));
  planes.forEach((plane, k) => one.painting.replace(k, plane));
  one.painting.end();
  take(one, header);
  one.saved = one.painting.version;
  delete one.conflict;
  restoreLocks();
  toast(`Their masks are shown. ${text}`);
  showSaved();
  refresh();
}

async function showHistory() {
  if (!doc) return;
  const one = doc, at = { video: one.video, frame: one.frame };
  const { revisions } = await getJson(`api/history?${query(at)}`);
  const list = revisions.map(({ revision, time, saved }) => {
    const item = document.createElement("li"), what = document.createElement("span"), button = document.createElement("button");
    const short = revision.split("/").at(-1);
    what.append(/^r\d+$/.test(short) ? `Revision ${Number(short.slice(1))}` : "As it was before");
    const more = document.createElement("span");
    more.className = "quiet";
    more.textContent = [time && new Date(time).toLocaleString(), { hand: "saved by hand", itself: "saved by itself" }[saved]].filter(Boolean).join(", ");
    button.textContent = revision === one.revision ? "stands" : "Show it";
    button.disabled = revision === one.revision;
    button.type = "button";
    button.onclick = async () => {
      $("history").close();
      const [header, bytes] = await getPacked(`api/masks?${query({ ...at, revision })}`);
      if (one !== doc) return;
      const all = folder.classes.map((_, k) => k), { offered, touched } = marksOf(header);
      // As it came about: what a model offered then is no hand's now.
      const marks = new Map(all.map((k) => [k, { offered: offered.has(k), touched: touched.has(k) }]));
      if (header.prelabel) doc.prelabel = header.prelabel;
      change(all, (painting) => cutPlanes(bytes, painting).forEach((plane, k) => painting.replace(k, plane)), marks);
      toast("This revision is shown, and becomes the newest; Ctrl+Z takes that back.");
    };
    item.append(what, more, button);
    return item;
  });
  $("revisions").replaceChildren(...list.reverse());
  if (!list.length) $("revisions").textContent = "Nothing has been saved of this frame.";
  $("history").showModal();
}

// --- Notes and what is left -----------------------------------------------------------------------

const workHere = () => clip && folder.work.find((w) => w.video === clip.video && w.frame === frame);

function askNote(kind) {
  const here = workHere(), dialog = $("note");
  // Of a clip that does not open all frames that are to do.
  const at = clip ? { video: clip.video, frame } : { video: $("video").value, frame: null };
  $("note-title").textContent = `${kind === "skip" ? "Skip" : "Flag"} this ${clip ? "frame" : "clip, which does not open"}`;
  $("comment").value = here?.comment ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  dialog.onclose = async () => {
    const answer = dialog.returnValue;
    if (answer !== "ok" && answer !== "clear") return;
    const note = answer === "ok" ? kind : "", comment = answer === "ok" ? $("comment").value : "";
    try {
      folder.work = (await post("api/note", { ...at, note, comment })).work;
      fillWork();
      if (note === "skip" && toDo().length) goNext(1);
    } catch (error) {
      toast(error.message, true);
    }
  };
}

const kindOf = (w) => w.note || (w.done ? "done" : w.offered ? "offered" : "open");
const isOpen = (w) => !w.done && w.note !== "skip";

/** Clips of which nobody has painted or noted a frame. */
function notBegun() {
  const begun = new Set(folder.work.map((w) => w.video));
  return folder.videos.filter((video) => !begun.has(video));
}

/** What is left, in the order of the clips; of those that are not begun the first frame. */
function toDo() {
  const place = new Map(folder.videos.map((video, i) => [video, i]));
  const list = [...folder.work.filter(isOpen), ...notBegun().map((video) => ({ video, frame: 0 }))];
  return list.sort((a, b) => place.get(a.video) - place.get(b.video) || a.frame - b.frame);
}

function fillWork() {
  const left = folder.work.filter(isOpen).length, fresh = new Set(notBegun());
  const done = folder.work.filter((w) => w.done).length;
  const offered = folder.work.filter((w) => w.offered && isOpen(w)).length;
  const flagged = folder.work.filter((w) => w.note === "flag").length;
  const clips = fresh.size && `${fresh.size} ${fresh.size === 1 ? "clip" : "clips"} not begun`;
  $("work-count").textContent = [
    folder.work.length ? `${left} left${offered ? ` (${offered} offered)` : ""}, ${done} done` : "", flagged ? `${flagged} flagged` : "", clips || "",
  ].filter(Boolean).join(", ");
  const list = [], place = new Map(folder.videos.map((name, i) => [name, i]));
  const all = [...folder.work, ...[...fresh].map((name) => ({ video: name, frame: 0, fresh: true }))];
  all.sort((a, b) => place.get(a.video) - place.get(b.video) || a.frame - b.frame);
  let video = null;
  // A list of thousands would be slow, and nobody reads it.
  const near = Math.max(0, all.findIndex((w) => w.video === clip?.video) - 20);
  for (const one of all.slice(near, near + 300)) {
    if (one.video !== video) {
      video = one.video;
      const head = document.createElement("li");
      head.className = "head";
      head.textContent = video;
      list.push(head);
    }
    const item = document.createElement("li"), button = document.createElement("button");
    const kind = kindOf(one);
    const here = clip && one.video === clip.video && (one.fresh || one.frame === frame);
    item.className = `${kind}${one.done ? " done" : ""}${here ? " here" : ""}`;
    const said = [one.note && { skip: "Skipped", flag: "Flagged" }[one.note], one.comment].filter(Boolean).join(": ");
    button.title = said || (one.offered ? "A model offered this: correct it, or say that it is all right" : "");
    for (const [text, name] of [
      [{ flag: "⚑", skip: "↷", done: "✓", offered: "◌", open: "○" }[kind], "mark"],
      [one.fresh ? "Not begun: choose a frame" : `Frame ${one.frame}${one.comment ? ` · ${one.comment}` : ""}`, "what"],
      [one.seconds ? clock(one.seconds) : "", "quiet"],
    ]) {
      const span = document.createElement("span");
      span.className = name;
      span.textContent = text;
      button.append(span);
    }
    button.onclick = () => {
      if (one.video !== clip?.video) openClip(one.video, one.frame);
      else if (!one.fresh) goByHand(one.frame);
    };
    item.append(button);
    list.push(item);
  }
  $("work").replaceChildren(...list);
  const marks = folder.work.filter((w) => w.video === clip?.video).map((one) => {
    const mark = document.createElement("i");
    mark.className = kindOf(one);
    mark.style.left = `${clip.frames > 1 ? (100 * one.frame) / (clip.frames - 1) : 50}%`;
    return mark;
  });
  $("marks").replaceChildren(...marks);
  for (const option of $("video").options) {
    const mine = folder.work.filter((w) => w.video === option.value);
    const open = mine.filter(isOpen).length;
    option.textContent = option.value + (mine.length ? (open ? ` (${open} left)` : " ✓") : "");
  }
  showFacts();
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
let lastHand = 0;

function showFacts() {
  const here = workHere();
  const spent = (here?.seconds ?? 0) + (doc?.seconds ?? 0);
  const note = here?.note ? `${{ skip: "Skipped", flag: "Flagged" }[here.note]}${here.comment ? `: ${here.comment}` : ""}. ` : "";
  $("frame-facts").textContent = `${note}${clock(spent)} spent on it.`;
  for (const kind of ["skip", "flag"]) {
    document.querySelector(`[data-action=${kind}]`).setAttribute("aria-pressed", String(here?.note === kind));
  }
}

setInterval(() => {
  if (doc && document.visibilityState === "visible" && performance.now() - lastHand < IDLE) {
    doc.seconds++;
    showFacts();
  } else if (playing && document.visibilityState === "visible") watched++;
}, 1000);

// --- Painting -------------------------------------------------------------------------------------

const tool = () => TOOLS[state.tool];
const level = () => Math.floor((255 * state.confidence) / 100 + 0.5);
let stroke = null; // {last, panning, outline}
let points = []; // of a line or outline that is not ended
let firstLine = null; // of a band
let pointer = null; // where it is, in pixels of the frame
let space = false;

function brush() {
  const { size, softness } = tool();
  const erase = state.tool === "eraser" || state.tool === "lower" || state.confidence === 0;
  return { radius: size, softness, erase, level: state.tool === "eraser" ? 0 : level() };
}

/** Changes classes as one step of the history; `marks` as of Painting.end. */
function change(classes, work, marks) {
  if (!doc || !doc.painting.begin(classes)) return false;
  work(doc.painting);
  const changed = doc.painting.end(marks);
  if (changed) touch();
  refresh();
  return changed;
}

function mayPaint() {
  const name = folder.classes[state.k].name;
  if (state.locked.has(state.k)) toast(`${name} is locked; K unlocks it.`);
  else if (!state.visible[state.k] || !state.masks) toast(`${name} is hidden; ${state.masks ? "V" : "M"} shows it.`);
  else return true;
  return false;
}

function toFrame(event) {
  const box = $("over").getBoundingClientRect(), ratio = devicePixelRatio;
  return {
    x: ((event.clientX - box.left) * ratio - look.x) / look.scale,
    y: ((event.clientY - box.top) * ratio - look.y) / look.scale,
    strength: event.pointerType === "pen" && state.pressure ? event.pressure : 1,
  };
}

function onDown(event) {
  lastHand = performance.now();
  if (event.pointerType === "pen") $("pressure-row").hidden = false;
  if (!clip || stroke) return;
  const at = toFrame(event), panning = event.button === 1 || event.button === 2 || space || state.tool === "pan";
  if (panning) {
    $("over").setPointerCapture(event.pointerId);
    stroke = { panning: true, x: event.clientX, y: event.clientY, from: { ...look } };
    return;
  }
  if (event.button !== 0) return;
  if (playing) {
    // A stroke would be on a frame that nobody chose.
    stop();
    toast("Stopped; paint on this frame.");
    return;
  }
  if (!doc || document.body.dataset.state !== "ready") {
    if (document.body.dataset.state === "loading") toast("The frame is being opened; paint again.");
    return;
  }
  if (!mayPaint()) return;
  $("over").setPointerCapture(event.pointerId);
  if (["brush", "eraser", "lower"].includes(state.tool)) {
    if (!doc.painting.begin([state.k])) return;
    stroke = { last: at };
    doc.painting.line(state.k, at, at, brush());
    requestDraw();
  } else if (state.tool === "fill" && event.shiftKey) {
    let closed = false;
    change([state.k], (painting) => { closed = painting.flood(state.k, at.x, at.y, level()); });
    if (!closed) toast("No painted outline of this confidence encloses that point.");
  } else if (state.tool === "fill" && !points.length) {
    stroke = { outline: [at] };
  } else {
    points.push(at);
    requestDraw();
  }
}

function onMove(event) {
  lastHand = performance.now();
  pointer = toFrame(event);
  if (stroke?.panning) {
    look.x = stroke.from.x + (event.clientX - stroke.x) * devicePixelRatio;
    look.y = stroke.from.y + (event.clientY - stroke.y) * devicePixelRatio;
    fitted = false;
  } else if (stroke?.outline) {
    for (const one of event.getCoalescedEvents?.() ?? [event]) stroke.outline.push(toFrame(one));
  } else if (stroke) {
    const events = event.getCoalescedEvents?.() ?? [];
    for (const one of events.length ? events : [event]) {
      const at = toFrame(one);
      doc.painting.line(state.k, stroke.last, at, brush());
      stroke.last = at;
    }
  }
  requestDraw();
}

function onUp() {
  if (stroke?.outline) {
    const outline = stroke.outline, far = outline.some((p) => Math.hypot(p.x - outline[0].x, p.y - outline[0].y) * look.scale > 6);
    stroke = null;
    if (far) fillOutline(outline);
    else points = [outline[0]]; // a click: the first corner
    requestDraw();
    return;
  }
  endStroke();
}

function endStroke() {
  if (!stroke) return;
  const painted = !stroke.panning && !stroke.outline;
  stroke = null;
  if (painted && doc?.painting.end()) touch();
  refresh();
}

function fillOutline(outline) {
  const { size, softness } = tool();
  const options = { level: level(), border: size * softness, erase: state.confidence === 0 };
  change([state.k], (painting) => painting.fill(state.k, outline, options));
}

function finish() {
  // A double click leaves its last point twice.
  const distinct = points.filter((p, i) => i === 0 || Math.hypot(p.x - points[i - 1].x, p.y - points[i - 1].y) > 0.5);
  if (state.tool === "line" && distinct.length) {
    change([state.k], (painting) => {
      distinct.forEach((p, i) => painting.line(state.k, distinct[Math.max(0, i - 1)], p, brush()));
    });
    points = [];
  } else if (state.tool === "fill" && distinct.length > 2) {
    points = [];
    fillOutline(distinct);
  } else if (state.tool === "band" && distinct.length > 1) {
    points = [];
    if (!firstLine) firstLine = distinct;
    else {
      const outline = between(firstLine, distinct);
      firstLine = null;
      fillOutline(outline);
    }
  } else if (points.length) {
    toast(state.tool === "fill" ? "An outline has at least three corners." : "A line has at least two points.");
  }
  requestDraw();
}

function backPoint() {
  if (points.length) points.pop();
  else if (firstLine) {
    points = firstLine;
    firstLine = null;
  }
  requestDraw();
}

function cancelPoints() {
  points = [];
  firstLine = null;
}

function giveUp() {
  if (stroke && !stroke.panning && !stroke.outline) {
    doc.painting.cancel();
    stroke = null;
  } else if (points.length || firstLine || stroke) {
    stroke = null;
    cancelPoints();
  }
  refresh();
}

function step(direction) {
  if (stroke || !doc) return;
  if (points.length && direction === "undo") {
    backPoint();
    return;
  }
  if (doc.painting[direction]()) touch();
  refresh();
}

// --- Settings -------------------------------------------------------------------------------------

function choose(name) {
  endStroke();
  cancelPoints();
  state.tool = name;
  refresh();
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
// The slider of radii is finer where they are small: 1 to 200 pixels.
const toSlider = (size) => (100 * Math.log(size)) / Math.log(200);
const fromSlider = (value) => 200 ** (value / 100);

function setConfidence(value) {
  state.confidence = clamp(Math.round(value), 0, 100);
  refresh();
}

function setSize(value) {
  tool().size = clamp(value < 10 ? Math.round(2 * value) / 2 : Math.round(value), 1, 200);
  refresh();
}

function setSoftness(value) {
  tool().softness = clamp(Math.round(20 * value) / 20, 0, 1);
  refresh();
}

function setThreshold(value) {
  state.threshold = clamp(Math.round(100 * value) / 100, 0, 1);
  state.cut = true;
  refresh();
}

function setRange(name, value) {
  if (name === "opacity") state.opacity = clamp(value, 0, 100) / 100;
  else state[name] = clamp(value, -100, 100);
  refresh();
}

function pick(k) {
  const n = folder.classes.length;
  endStroke();
  state.k = (k + n) % n;
  refresh();
}

function toggleVisible(k) {
  state.visible[k] = !state.visible[k];
  refresh();
}

function toggleLocked(k) {
  endStroke();
  if (!state.locked.delete(k)) state.locked.add(k);
  restoreLocks();
  refresh();
}

function restoreLocks() {
  if (doc) doc.painting.locked = doc.painting.locked.map((_, k) => state.locked.has(k));
}

function only() {
  const alone = state.visible.every((shown, k) => shown === (k === state.k));
  state.visible = state.visible.map((_, k) => alone || k === state.k);
  refresh();
}

function setSpace(down) {
  space = down;
  $("stage").classList.toggle("panning", space || state.tool === "pan");
  requestDraw();
}

// --- Zoom and pan ---------------------------------------------------------------------------------

function fit() {
  if (!clip) return;
  const { width, height } = $("canvas"), margin = 0.97;
  const [top, left, bottom, right] = !whole && clip.area ? clip.area : [0, 0, clip.height, clip.width];
  look.scale = Math.min(width / (right - left), height / (bottom - top)) * margin;
  look.x = (width - (left + right) * look.scale) / 2;
  look.y = (height - (top + bottom) * look.scale) / 2;
  fitted = true;
  requestDraw();
}

function zoom(factor, at = null) {
  const { width, height } = $("canvas");
  const x = at?.x ?? width / 2, y = at?.y ?? height / 2;
  const scale = clamp(look.scale * factor, 0.05, 60);
  look.x = x - ((x - look.x) * scale) / look.scale;
  look.y = y - ((y - look.y) * scale) / look.scale;
  look.scale = scale;
  fitted = false;
  requestDraw();
}

function onWheel(event) {
  event.preventDefault();
  const delta = event.deltaY || event.deltaX;
  if (event.shiftKey) {
    setSize(tool().size * 1.1 ** -Math.sign(delta));
    return;
  }
  const box = $("over").getBoundingClientRect();
  zoom(1.0015 ** -delta, { x: (event.clientX - box.left) * devicePixelRatio, y: (event.clientY - box.top) * devicePixelRatio });
}

function onResize() {
  const before = [$("canvas").width, $("canvas").height];
  for (const canvas of [$("canvas"), $("over")]) {
    canvas.width = Math.max(1, Math.round($("stage").clientWidth * devicePixelRatio));
    canvas.height = Math.max(1, Math.round($("stage").clientHeight * devicePixelRatio));
  }
  if (fitted) {
    fit();
    return;
  }
  // What was in the middle stays there.
  look.x += ($("canvas").width - before[0]) / 2;
  look.y += ($("canvas").height - before[1]) / 2;
  requestDraw();
}

// --- Drawing --------------------------------------------------------------------------------------

function requestDraw() {
  if (stale) return;
  stale = true;
  requestAnimationFrame(draw);
}

const rgb = (css) => [1, 3, 5].map((i) => parseInt(css.slice(i, i + 2), 16) / 255);

function colours() {
  return folder.classes.map(({ colour }, k) => [...rgb(colour), state.visible[k] && state.masks ? state.opacity : 0]);
}

function looks() {
  return {
    colours: colours(), least: state.cut ? leastValue(state.threshold) : 0,
    contrast: 4 ** (state.contrast / 100), brightness: state.brightness / 200, heat: state.heat && others !== null,
  };
}

function draw() {
  stale = false;
  if (!clip) return;
  if (doc) {
    doc.painting.stale.forEach((box, k) => { if (box) view.setMask(k, doc.painting.planes[k], box); });
    doc.painting.stale.fill(null);
  }
  view.draw({ ...look, ...looks() });
  drawOver();
  $("stage").dataset.look = [look.x, look.y, look.scale].map((v) => v / devicePixelRatio).join(" ");
}

function drawOver() {
  const canvas = $("over"), to = canvas.getContext("2d"), colour = folder.classes[state.k].colour;
  to.setTransform(1, 0, 0, 1, 0, 0);
  to.clearRect(0, 0, canvas.width, canvas.height);
  const place = (p) => [look.x + p.x * look.scale, look.y + p.y * look.scale];
  const path = (line, close = false) => {
    to.beginPath();
    line.forEach((p, i) => (i ? to.lineTo(...place(p)) : to.moveTo(...place(p))));
    if (close) to.closePath();
    for (const [width, style] of [[3, "rgb(0 0 0 / .55)"], [1.5, colour]]) {
      to.lineWidth = width * devicePixelRatio;
      to.strokeStyle = style;
      to.stroke();
    }
  };
  const dots = (line) => {
    for (const p of line) {
      to.beginPath();
      to.arc(...place(p), 3 * devicePixelRatio, 0, 7);
      to.fillStyle = colour;
      to.fill();
      to.lineWidth = devicePixelRatio;
      to.strokeStyle = "#000";
      to.stroke();
    }
  };
  if (clip.area) {
    // What training crops to.
    const [top, left, bottom, right] = clip.area, [x, y] = place({ x: left, y: top });
    to.setLineDash([5 * devicePixelRatio, 5 * devicePixelRatio]);
    to.lineWidth = devicePixelRatio;
    to.strokeStyle = "rgb(255 255 255 / .45)";
    to.strokeRect(x, y, (right - left) * look.scale, (bottom - top) * look.scale);
    to.setLineDash([]);
  }
  if (firstLine) path(firstLine);
  if (stroke?.outline) path(stroke.outline, true);
  if (points.length) {
    path(pointer ? [...points, pointer] : points, state.tool === "fill" && points.length > 1);
    dots(points);
  }
  const panning = space || state.tool === "pan" || stroke?.panning;
  $("stage").classList.toggle("panning", Boolean(panning));
  if (pointer && !panning) {
    const [x, y] = place(pointer), ratio = devicePixelRatio;
    const drags = ["brush", "eraser", "lower"].includes(state.tool), { size, softness } = tool();
    const ring = (radius, style, width) => {
      to.beginPath();
      to.arc(x, y, Math.max(radius, 1), 0, 7);
      to.lineWidth = width * ratio;
      to.strokeStyle = style;
      to.stroke();
    };
    const radius = drags || state.tool === "line" ? size * look.scale : 3 * ratio;
    ring(radius, "rgb(0 0 0 / .6)", 3);
    ring(radius, drags && state.tool !== "brush" ? "#fff" : colour, 1.5);
    if (drags && softness > 0 && softness < 1) ring(radius * (1 - softness), "rgb(255 255 255 / .5)", 1);
    if (radius > 12 * ratio || !drags) {
      to.beginPath();
      to.moveTo(x - 3 * ratio, y); to.lineTo(x + 3 * ratio, y);
      to.moveTo(x, y - 3 * ratio); to.lineTo(x, y + 3 * ratio);
      to.lineWidth = ratio;
      to.strokeStyle = "#fff";
      to.stroke();
    }
  }
  readOut();
}

function readOut() {
  let text = `${Math.round((100 * look.scale) / devicePixelRatio)} %`;
  if (pointer && doc) {
    const x = Math.floor(pointer.x), y = Math.floor(pointer.y);
    if (x >= 0 && y >= 0 && x < clip.width && y < clip.height) {
      const value = doc.painting.planes[state.k][y * clip.width + x];
      text = `${folder.classes[state.k].name} ${Math.round(value / 2.55)} %   x ${x}  y ${y}   ${text}`;
    }
  }
  $("readout").textContent = text;
}

let toasting = null;

function toast(text, bad = false) {
  $("toast").textContent = text;
  $("toast").classList.toggle("bad", bad);
  $("toast").hidden = false;
  clearTimeout(toasting);
  toasting = setTimeout(() => { $("toast").hidden = true; }, bad ? 10_000 : 4500);
}

function showFrameNumber() {
  $("frame").value = frame;
  $("frame-number").textContent = `frame ${frame} of 0–${clip.frames - 1}`;
  document.body.dataset.frame = frame;
  for (const item of $("work").children) item.classList.remove("here");
}

/** Everything that shows a setting. */
function refresh() {
  const current = tool();
  for (const name of Object.keys(TOOLS)) {
    document.querySelector(`[data-action=${name}]`).setAttribute("aria-pressed", String(name === state.tool));
  }
  $("tool-name").textContent = current.name;
  $("tip").textContent = current.tip;
  // What a tool does not use is not offered.
  const paints = state.tool !== "pan", levels = paints && state.tool !== "eraser";
  for (const [id, on] of [["confidence-row", levels], ["levels", levels], ["size-row", paints], ["softness-row", paints]]) $(id).hidden = !on;
  $("confidence").value = state.confidence;
  $("confidence-out").textContent = `${state.confidence} %`;
  $("size").value = toSlider(current.size);
  $("size-out").textContent = `${current.size} px`;
  $("softness").value = 100 * current.softness;
  $("softness-out").textContent = `${Math.round(100 * current.softness)} %`;
  [...$("levels").children].forEach((button, i) => button.setAttribute("aria-pressed", String(state.confidence === 10 * (i + 1))));
  $("cut").checked = state.cut;
  $("threshold").value = 100 * state.threshold;
  $("threshold-out").textContent = `${Math.round(100 * state.threshold)} %`;
  for (const name of ["contrast", "brightness"]) {
    $(name).value = state[name];
    $(`${name}-out`).textContent = state[name] > 0 ? `+${state[name]}` : state[name];
  }
  $("opacity").value = 100 * state.opacity;
  $("opacity-out").textContent = `${Math.round(100 * state.opacity)} %`;
  $("heat").checked = state.heat;
  const t = Math.round(100 * state.threshold);
  $("badge").textContent = !state.masks ? "Masks hidden (M)" : `Training sees ${t ? `at least ${t} %` : "everything above 0 %"}`;
  $("badge").hidden = state.masks && !state.cut;
  document.querySelector("[data-action=undo]").disabled = !doc?.painting.done.length;
  document.querySelector("[data-action=redo]").disabled = !doc?.painting.undone.length;
  showClasses();
  fillWork();
  if (others) drawPanels();
  requestDraw();
}

const EYE = '<svg viewBox="0 0 20 20"><path d="M2 10c3-5 13-5 16 0-3 5-13 5-16 0Z"/><circle cx="10" cy="10" r="2"/></svg>';
const LOCK = '<svg viewBox="0 0 20 20"><path d="M5 9h10v8H5Zm2 0V6a3 3 0 0 1 6 0v3"/></svg>';
const OPEN = '<svg viewBox="0 0 20 20"><path d="M5 9h10v8H5Zm2 0V6a3 3 0 0 1 5.8-1"/></svg>';

function makeClasses() {
  $("classes").replaceChildren(...folder.classes.map(({ name, colour }, k) => {
    const item = document.createElement("li");
    const choice = document.createElement("button");
    choice.className = "pick";
    const swatch = document.createElement("span"), label = document.createElement("span"), most = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = colour;
    label.textContent = name;
    most.className = "most";
    choice.append(swatch, label, most);
    choice.onclick = () => pick(k);
    const eye = document.createElement("button"), lock = document.createElement("button");
    eye.className = lock.className = "mini";
    eye.innerHTML = EYE;
    eye.onclick = () => toggleVisible(k);
    lock.onclick = () => toggleLocked(k);
    item.append(choice, eye, lock);
    return item;
  }));
}

function showClasses() {
  [...$("classes").children].forEach((item, k) => {
    const [choice, eye, lock] = item.children, locked = state.locked.has(k);
    item.className = `${k === state.k ? "active" : ""} ${state.visible[k] ? "" : "hidden-class"}`;
    choice.setAttribute("aria-pressed", String(k === state.k));
    eye.setAttribute("aria-pressed", String(state.visible[k]));
    eye.title = `${state.visible[k] ? "Hide" : "Show"} (V)`;
    eye.setAttribute("aria-label", `Show ${folder.classes[k].name}`);
    if (lock.dataset.locked !== String(locked)) lock.innerHTML = locked ? LOCK : OPEN;
    lock.dataset.locked = locked;
    lock.setAttribute("aria-pressed", String(locked));
    lock.title = `${locked ? "Unlock" : "Lock"} (K)`;
    lock.setAttribute("aria-label", `Lock ${folder.classes[k].name}`);
    if (!clip) choice.querySelector(".most").textContent = "";
    if (!doc) return;
    // Of one class at a time: all pixels are looked at.
    if (doc.counted?.[k]?.version !== doc.painting.version) {
      doc.counted ??= [];
      let most = 0;
      for (const value of doc.painting.planes[k]) if (value > most) most = value;
      doc.counted[k] = { version: doc.painting.version, most };
    }
    const { most } = doc.counted[k];
    const untouched = doc.painting.offered.has(k) && !doc.painting.touched.has(k);
    choice.querySelector(".most").textContent = untouched ? "offered" : most ? `${Math.round(most / 2.55)} %` : "";
    choice.title = untouched ? "A model offered this and no hand has touched it" : "Paint this class (Q, A)";
  });
}

function makeHelp() {
  const groups = new Map();
  for (const [group, name, keys, text] of ACTIONS) {
    if (group === "Review" && !folder.review) continue;
    if (!groups.has(group)) {
      const section = document.createElement("section"), head = document.createElement("h3");
      head.textContent = group;
      section.append(head);
      groups.set(group, section);
    }
    const row = document.createElement("div"), what = document.createElement("span"), how = document.createElement("span");
    what.textContent = text;
    keys.forEach((key, i) => {
      const box = document.createElement("kbd");
      box.textContent = key.replace("Arrow", "").replace(/(^|\+)([a-z])$/, (c) => c.toUpperCase());
      how.append(i ? " " : "", box);
    });
    row.dataset.name = name;
    row.append(what, how);
    groups.get(group).append(row);
  }
  $("shortcuts").replaceChildren(...groups.values());
  for (const button of document.querySelectorAll("[data-action]")) {
    const [, , keys, text] = BY_NAME[button.dataset.action];
    button.title = `${text} (${keys.map((k) => k.toUpperCase()).join(", ")})`;
    if (button.classList.contains("icon")) button.setAttribute("aria-label", text);
    button.addEventListener("click", (event) => perform(button.dataset.action, event));
  }
}

// --- Protocol, pre-labels, review -----------------------------------------------------------------

async function toggleProtocol() {
  if (!folder.protocol) {
    toast("There is no protocol; put protocol.md into the folder.");
    return;
  }
  const panel = $("protocol");
  if (panel.hidden && !panel.childElementCount) {
    try {
      // Made by the server from Markdown without HTML.
      panel.innerHTML = (await getJson("api/protocol")).html;
    } catch (error) {
      toast(error.message, true);
      return;
    }
  }
  panel.hidden = !panel.hidden;
  $("protocol-button").setAttribute("aria-pressed", String(!panel.hidden));
}

async function offerPrelabel() {
  if (!folder.prelabels.length) {
    toast("No model was named; start with --prelabel WORKDIR.");
    return;
  }
  if (!doc) return;
  const asked = doc, member = $("member").value;
  $("stage").classList.add("busy");
  toast("The model looks at this frame …");
  try {
    const [header, bytes] = await getPacked(`api/prelabel?${query({ video: clip.video, frame, member })}`);
    if (asked !== doc) return;
    const planes = cutPlanes(bytes, clip);
    // What a hand has painted is not the model's to change.
    const free = planes.map((_, k) => k).filter((k) => header.known[k] && !state.locked.has(k) && !doc.painting.planes[k].some((v) => v));
    const seen = free.filter((k) => planes[k].some((v) => v));
    if (seen.length) doc.prelabel = member;
    change(seen, (painting) => seen.forEach((k) => painting.replace(k, planes[k])), asOffered(seen));
    const named = seen.map((k) => folder.classes[k].name).join(", ");
    toast(
      seen.length ? `${member} filled ${named}; correct it.`
        : free.length ? `${member} sees nothing here.` : "Every class that the model knows is painted or locked already.");
  } catch (error) {
    toast(error.message, true);
  } finally {
    $("stage").classList.remove("busy");
  }
}

/** Says of what a model offered that somebody has seen it and finds it right: training may learn from it. */
function accept() {
  if (!doc) return;
  const seen = untouchedOf(doc.painting);
  if (!seen.length) {
    toast("Nothing here is waiting for your word: every offered mask has been corrected or called right.");
    return;
  }
  doc.painting.note(new Map(seen.map((k) => [k, { touched: true }])));
  touch();
  refresh();
  toast(`${seen.map((k) => folder.classes[k].name).join(", ")}: seen and right.`);
}

function nextMember() {
  const member = $("member");
  if (!member.options.length) toast("No model was named; start with --prelabel WORKDIR.");
  else {
    member.selectedIndex = (member.selectedIndex + 1) % member.options.length;
    toast(`${member.value} is the model that is asked (J).`);
  }
}

/** Puts an annotator's mask of the chosen class into the consensus. */
function takeClass(name) {
  if (!others?.has(name) || !isReady()) return;
  if (state.locked.has(state.k)) toast(`${folder.classes[state.k].name} is locked; K unlocks it.`);
  else putAgreed([state.k], () => others.get(name)[state.k], [name]);
}

/**
 * Puts masks of annotators into the consensus: plane(k) of each class. What all of those who painted
 * a class have as a model offered it is still the model's.
 */
function putAgreed(classes, plane, names) {
  const marks = new Map();
  for (const k of classes) {
    const painted = names.filter((name) => others.get(name)[k].some((v) => v));
    if (!painted.length || !painted.every((name) => origins.get(name).untouched.has(k))) continue;
    marks.set(k, { touched: false, offered: true });
    // Of several models the first is named, as a mask has one.
    if (doc && !state.locked.has(k)) doc.prelabel ||= origins.get(painted[0]).prelabel;
  }
  change(classes, (painting) => classes.forEach((k) => painting.replace(k, plane(k))), marks);
}

async function openReview(turn) {
  const [header, bytes] = await getPacked(`api/review?${query({ video: clip.video, frame })}`);
  if (turn !== opening) return;
  const n = clip.width * clip.height * folder.classes.length;
  others = new Map();
  origins.clear();
  header.annotators.forEach((name, i) => {
    if (name === folder.annotator) return;
    others.set(name, cutPlanes(bytes.subarray(i * n, (i + 1) * n), clip));
    origins.set(name, { prelabel: header.origins[i].prelabel, untouched: new Set(untouchedOf(marksOf(header.origins[i]))) });
  });
  makePanels();
}

/** How far apart the annotators are at each pixel: the largest difference, over the visible classes. */
function disagreement() {
  const n = clip.width * clip.height, found = new Uint8Array(n), all = [...others.values()];
  if (all.length < 2) return found;
  folder.classes.forEach((_, k) => {
    if (!state.visible[k]) return;
    for (let i = 0; i < n; i++) {
      let low = 255, high = 0;
      for (const planes of all) {
        const value = planes[k][i];
        if (value < low) low = value;
        if (value > high) high = value;
      }
      if (high - low > found[i]) found[i] = high - low;
    }
  });
  return found;
}

function makePanels() {
  const figure = (name, buttons) => {
    const box = document.createElement("figure"), canvas = document.createElement("canvas"), caption = document.createElement("figcaption"), strong = document.createElement("strong");
    canvas.width = clip.width;
    canvas.height = clip.height;
    strong.textContent = name || "imported, nobody named";
    strong.title = strong.textContent;
    caption.append(strong, ...buttons);
    box.append(canvas, caption);
    box.dataset.name = name;
    return box;
  };
  const taking = (name) => {
    const button = document.createElement("button");
    button.textContent = "Take class";
    button.title = `Put this mask of the chosen class into the consensus (Alt+${1 + [...others.keys()].indexOf(name)})`;
    button.onclick = () => takeClass(name);
    return [button];
  };
  $("panels").replaceChildren(
    ...[...others.keys()].map((name) => figure(name, taking(name))),
    ...(others.size > 1 ? [figure("Disagreement", [])] : []),
  );
  if (!others.size) $("panels").textContent = "Nobody has painted this frame.";
  $("panels").hidden = false;
  onResize();
}

let panelLook = "";

function drawPanels() {
  const key = JSON.stringify([looks(), clip.video, frame, others.size]);
  if (key === panelLook || !images.has(frame)) return;
  panelLook = key;
  const heat = disagreement(), grey = images.get(frame);
  view.setHeat(heat);
  for (const box of $("panels").querySelectorAll("figure")) {
    const planes = others.get(box.dataset.name), canvas = box.querySelector("canvas");
    const picture = new ImageData(clip.width, clip.height), whole = { x0: 0, y0: 0, x1: clip.width, y1: clip.height };
    blend(picture, grey, planes ?? [], { ...looks(), heat: planes ? null : heat }, whole);
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }
}

const MERGE = {
  mean: (values) => Math.floor(values.reduce((a, b) => a + b, 0) / values.length + 0.5),
  median: (values) => {
    const sorted = [...values].sort((a, b) => a - b), middle = sorted.length / 2;
    return sorted.length % 2 ? sorted[Math.floor(middle)] : Math.floor((sorted[middle - 1] + sorted[middle]) / 2 + 0.5);
  },
  least: (values) => Math.min(...values),
  most: (values) => Math.max(...values),
};

function startConsensus(how) {
  if (!folder.review) toast("Others are shown in a review alone; start with --review.");
  else if (doc && !others?.size) toast("Nobody else has painted this frame.");
  if (!others?.size || !doc) return;
  const all = [...others.values()], n = clip.width * clip.height;
  putAgreed(folder.classes.map((_, k) => k), (k) => {
    const plane = new Uint8Array(n);
    for (let i = 0; i < n; i++) {
      const values = all.map((planes) => planes[k][i]);
      if (values.some((v) => v)) plane[i] = MERGE[how](values);
    }
    return plane;
  }, [...others.keys()]);
}

// --- Start ----------------------------------------------------------------------------------------

function listen() {
  const over = $("over");
  over.addEventListener("pointerdown", onDown);
  over.addEventListener("pointermove", onMove);
  over.addEventListener("pointerup", onUp);
  over.addEventListener("pointercancel", () => giveUp());
  over.addEventListener("pointerleave", () => { if (!stroke) { pointer = null; requestDraw(); } });
  over.addEventListener("dblclick", () => { if (points.length || firstLine) finish(); });
  over.addEventListener("contextmenu", (event) => event.preventDefault());
  over.addEventListener("wheel", onWheel, { passive: false });
  addEventListener("keydown", (event) => { lastHand = performance.now(); onKey(event); });
  addEventListener("keyup", (event) => { if (event.key === " ") setSpace(false); });
  addEventListener("blur", () => setSpace(false));
  addEventListener("beforeunload", (event) => { if ([...docs.values()].some(unsaved) || stroke) { save(doc); event.preventDefault(); } });
  document.addEventListener("visibilitychange", () => { if (document.visibilityState === "hidden" && doc) save(doc); });
  $("status").addEventListener("click", () => { for (const one of docs.values()) if (one.conflict !== undefined) askConflict(one); });
  new ResizeObserver(onResize).observe($("stage"));
  const on = (id, act) => $(id).addEventListener("input", (event) => act(event.target));
  on("confidence", (input) => setConfidence(Number(input.value)));
  on("size", (input) => setSize(fromSlider(Number(input.value))));
  on("softness", (input) => setSoftness(Number(input.value) / 100));
  on("pressure", (input) => { state.pressure = input.checked; });
  on("cut", (input) => { state.cut = input.checked; refresh(); });
  on("threshold", (input) => setThreshold(Number(input.value) / 100));
  for (const name of ["contrast", "brightness", "opacity"]) on(name, (input) => setRange(name, Number(input.value)));
  on("heat", (input) => { state.heat = input.checked; refresh(); });
  on("frame", (input) => goByHand(Number(input.value)));
  on("speed", restart);
  $("pass").addEventListener("click", () => perform("skip"));
  $("video").addEventListener("change", (event) => openClip(event.target.value));
  // What the mouse has used does not keep the keys for itself; what Tab reached does.
  let byMouse = null;
  document.addEventListener("pointerdown", (event) => { byMouse = event.target.closest("button, input, select"); }, true);
  const give = () => { if (byMouse && !document.querySelector("dialog[open]")) byMouse.blur(); };
  document.addEventListener("click", (event) => { if (event.detail && byMouse?.tagName !== "SELECT") give(); });
  document.addEventListener("change", () => { if (byMouse?.type === "range" || byMouse?.tagName === "SELECT") give(); });
  document.addEventListener("keydown", () => { byMouse = null; }, true);
  // What nobody expected is not silent.
  addEventListener("unhandledrejection", (event) => toast(event.reason?.message ?? String(event.reason), true));
  addEventListener("error", (event) => toast(event.message, true));
  for (let i = 1; i <= 10; i++) {
    const button = document.createElement("button");
    button.textContent = 10 * i;
    button.title = `${10 * i} % (${i % 10})`;
    button.onclick = () => setConfidence(10 * i);
    $("levels").append(button);
  }
}

async function start() {
  folder = await getJson("api/folder");
  state.locked = new Set();
  state.visible = folder.classes.map(() => true);
  state.opacity = folder.opacity;
  document.title = `${folder.name} · the soft brush`;
  $("dataset").textContent = folder.name;
  $("annotator").textContent = folder.annotator;
  $("role").textContent = folder.review ? "review by" : "annotator";
  $("protocol-button").hidden = !folder.protocol;
  $("review-section").hidden = !folder.review;
  $("prelabel-section").hidden = !folder.prelabels.length;
  $("member").replaceChildren(...folder.prelabels.map((name) => new Option(name, name, name === folder.prelabel, name === folder.prelabel)));
  $("video").replaceChildren(...folder.videos.map((name) => new Option(name, name)));
  view = makeView($("canvas"), parameters.get("draw"));
  view.onrestored = () => openFrame();
  document.body.dataset.view = view.kind;
  makeClasses();
  makeHelp();
  listen();
  stale = false;
  onResize();
  await openClip(parameters.get("video") ?? folder.first, parameters.has("frame") ? Number(parameters.get("frame")) : null);
}

start().catch((error) => fail(error, () => location.reload()));
