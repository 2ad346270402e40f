// Confidences and what changes them: one Uint8Array a class, 255 = 100 %. Nothing here draws.
//
// Every tool is a level and a share: a share of 1 in a stroke's core that falls to 0 at its rim. The
// brush takes the maximum of what is there and level * share; the eraser takes the minimum of it and
// what lies level below full. So strokes that overlap leave what the strongest leaves, in any order.

export const STEPS = 200;

/** Share of a stroke at a distance from its middle: 1 up to radius * (1 - softness), 0 at the radius. */
export function share(distance, radius, softness) {
  const inner = radius * (1 - softness);
  if (distance <= inner) return 1;
  if (distance >= radius) return 0;
  const x = (radius - distance) / (radius - inner);
  return x * x * (3 - 2 * x);
}

/** The least stored value whose label is 1 at a threshold in [0, 1]; as lus_jax.labels.label. */
export function leastValue(threshold) {
  for (let value = 1; value < 255; value++) {
    if (Math.fround(value / 255) >= Math.fround(Math.fround(threshold) - Math.fround(0.5 / 255 + 1e-6))) return value;
  }
  return 255;
}

/** Joins two boxes {x0, y0, x1, y1}, half-open; null is empty. */
export function join(a, b) {
  if (!a) return b;
  if (!b) return a;
  return { x0: Math.min(a.x0, b.x0), y0: Math.min(a.y0, b.y0), x1: Math.max(a.x1, b.x1), y1: Math.max(a.y1, b.y1) };
}

/** What is painted on one frame, with its history. */
export class Painting {
  /** planes: K Uint8Array of height * width. */
  constructor(width, height, planes) {
    this.width = width;
    this.height = height;
    this.planes = planes;
    this.locked = planes.map(() => false);
    this.undone = [];
    this.done = [];
    // Boxes that changed since the view has seen them.
    this.stale = planes.map(() => ({ x0: 0, y0: 0, x1: width, y1: height }));
    // Rises with every change, so that a save knows whether it holds the latest.
    this.version = 0;
    // Classes that a hand changed, and those that hold what a model offered.
    this.touched = new Set();
    this.offered = new Set();
    this.copies = [];
    this.before = new Map();
    this.boxes = new Map();
  }

  /** Begins a change of some classes; those that are locked stay. */
  begin(classes) {
    this.before = new Map();
    this.boxes = new Map();
    for (const k of classes) {
      if (this.locked[k]) continue;
      // One copy a class for all changes: a new one each would be a frame's bytes of garbage a stroke.
      this.copies[k] ??= new Uint8Array(this.planes[k].length);
      this.copies[k].set(this.planes[k]);
      this.before.set(k, this.copies[k]);
    }
    return this.before.size > 0;
  }

  /**
   * Ends a change: it becomes one step of the history. Returns whether anything is different.
   * marks: by class, what is known of it now; where it says nothing a hand has touched the class.
   */
  end(marks = new Map()) {
    const parts = [];
    for (const [k, box] of this.boxes) {
      const exact = this.difference(k, box);
      if (exact) parts.push({ k, box: exact, bytes: cut(this.before.get(k), this.width, exact), marks: this.marks(k) });
    }
    this.before = new Map();
    this.boxes = new Map();
    if (!parts.length) return false;
    this.add(parts, marks);
    return true;
  }

  /** Changes what is known of classes (a Map as of `end`) and no pixel, as one step of the history. */
  note(marks) {
    const parts = [...marks.keys()].map((k) => ({ k, box: null, bytes: new Uint8Array(0), marks: this.marks(k) }));
    if (parts.length) this.add(parts, marks);
  }

  add(parts, marks) {
    this.done.push(parts);
    if (this.done.length > STEPS) this.done.shift();
    this.undone = [];
    for (const { k } of parts) this.setMarks(k, marks.get(k) ?? { touched: true });
    this.version++;
  }

  marks(k) {
    return { touched: this.touched.has(k), offered: this.offered.has(k) };
  }

  setMarks(k, marks) {
    for (const [name, on] of Object.entries(marks)) {
      if (on) this[name].add(k);
      else this[name].delete(k);
    }
  }

  /** Takes back a change that is under way. */
  cancel() {
    for (const [k, box] of this.boxes) {
      this.planes[k].set(this.before.get(k));
      this.mark(k, box);
    }
    this.before = new Map();
    this.boxes = new Map();
  }

  difference(k, box) {
    const a = this.before.get(k), b = this.planes[k], w = this.width;
    let x0 = box.x1, x1 = box.x0, y0 = -1, y1 = -1;
    for (let y = box.y0; y < box.y1; y++) {
      let i = y * w + box.x0, end = y * w + box.x1;
      while (i < end && a[i] === b[i]) i++;
      if (i === end) continue;
      let j = end - 1;
      while (a[j] === b[j]) j--;
      if (y0 < 0) y0 = y;
      y1 = y + 1;
      x0 = Math.min(x0, i - y * w);
      x1 = Math.max(x1, j - y * w + 1);
    }
    return y0 < 0 ? null : { x0, y0, x1, y1 };
  }

  undo() {
    return this.exchange(this.done, this.undone);
  }

  redo() {
    return this.exchange(this.undone, this.done);
  }

  exchange(from, to) {
    const parts = from.pop();
    if (!parts) return false;
    for (const part of parts) {
      if (part.box) {
        const now = cut(this.planes[part.k], this.width, part.box);
        paste(this.planes[part.k], this.width, part.box, part.bytes);
        part.bytes = now;
        this.mark(part.k, part.box);
      }
      const marks = this.marks(part.k);
      this.setMarks(part.k, part.marks);
      part.marks = marks;
    }
    to.push(parts);
    this.version++;
    return true;
  }

  /** Bytes that the history holds. */
  historyBytes() {
    let n = 0;
    for (const list of [this.done, this.undone]) for (const parts of list) for (const p of parts) n += p.bytes.length;
    return n;
  }

  mark(k, box) {
    this.stale[k] = join(this.stale[k], box);
  }

  changed(k, box) {
    this.boxes.set(k, join(this.boxes.get(k), box));
    this.mark(k, box);
  }

  box(x0, y0, x1, y1) {
    const box = {
      x0: Math.max(0, Math.floor(x0)), y0: Math.max(0, Math.floor(y0)),
      x1: Math.min(this.width, Math.ceil(x1)), y1: Math.min(this.height, Math.ceil(y1)),
    };
    return box.x0 < box.x1 && box.y0 < box.y1 ? box : null;
  }

  /**
   * Paints all within a radius of the line from a to b; a dab is a line to itself. Points are
   * {x, y, strength}, a pixel's middle lies at .5; strength (the pen's pressure) is a factor of the
   * level and runs evenly along the line.
   * brush: {radius, softness, level, erase}; level in 0..255. With erase the level is what stays.
   */
  line(k, a, b, { radius, softness, level, erase = false }) {
    if (!this.before.has(k)) return null;
    const box = this.box(
      Math.min(a.x, b.x) - radius, Math.min(a.y, b.y) - radius,
      Math.max(a.x, b.x) + radius, Math.max(a.y, b.y) + radius);
    if (!box) return null;
    const plane = this.planes[k], w = this.width;
    const inner = radius * (1 - softness), inner2 = inner * inner, outer2 = radius * radius, ramp = radius - inner;
    const ux = b.x - a.x, uy = b.y - a.y, length2 = ux * ux + uy * uy;
    const sa = a.strength ?? 1, sb = b.strength ?? 1, even = sa === sb;
    const top = erase ? 255 - level : level;
    for (let y = box.y0; y < box.y1; y++) {
      const py = y + 0.5 - a.y;
      for (let x = box.x0, i = y * w + box.x0; x < box.x1; x++, i++) {
        const px = x + 0.5 - a.x;
        let t = length2 > 0 ? (px * ux + py * uy) / length2 : 0;
        t = t < 0 ? 0 : t > 1 ? 1 : t;
        const dx = px - t * ux, dy = py - t * uy, d2 = dx * dx + dy * dy;
        let part;
        if (d2 <= inner2) part = 1;
        else if (d2 >= outer2) continue;
        else {
          const s = (radius - Math.sqrt(d2)) / ramp;
          part = s * s * (3 - 2 * s);
        }
        const strength = even ? sa : sa + t * (sb - sa);
        const value = Math.floor(top * strength * part + 0.5);
        if (erase) {
          if (plane[i] > 255 - value) plane[i] = 255 - value;
        } else if (plane[i] < value) plane[i] = value;
      }
    }
    this.changed(k, box);
    return box;
  }

  /**
   * Fills an outline of points; outside of it the level falls to 0 over `border` pixels.
   * erase as of `line`.
   */
  fill(k, points, { level, border = 0, erase = false }) {
    if (!this.before.has(k) || points.length < 3) return null;
    const xs = points.map((p) => p.x), ys = points.map((p) => p.y);
    const box = this.box(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys));
    if (box) {
      const plane = this.planes[k], w = this.width;
      for (let y = box.y0; y < box.y1; y++) {
        const crossings = [];
        for (let i = 0, j = points.length - 1; i < points.length; j = i++) {
          const a = points[j], b = points[i], py = y + 0.5;
          if (a.y > py !== b.y > py) crossings.push(a.x + ((py - a.y) / (b.y - a.y)) * (b.x - a.x));
        }
        crossings.sort((p, q) => p - q);
        for (let c = 0; c + 1 < crossings.length; c += 2) {
          const first = Math.max(0, Math.ceil(crossings[c] - 0.5)), last = Math.min(w, Math.ceil(crossings[c + 1] - 0.5));
          for (let i = y * w + first; i < y * w + last; i++) {
            if (erase) {
              if (plane[i] > level) plane[i] = level;
            } else if (plane[i] < level) plane[i] = level;
          }
        }
      }
      this.changed(k, box);
    }
    for (let i = 0; border > 0 && i < points.length; i++) {
      this.line(k, points[i], points[(i + 1) % points.length], { radius: border, softness: 1, level, erase });
    }
    return box;
  }

  /** Fills what a painted outline of at least the level encloses; false where it reaches the frame's border. */
  flood(k, x, y, level) {
    const { width: w, height: h } = this, plane = this.planes[k];
    const start = Math.floor(y) * w + Math.floor(x);
    if (!this.before.has(k) || x < 0 || y < 0 || x >= w || y >= h || plane[start] >= level) return false;
    const seen = new Uint8Array(w * h), stack = [start];
    seen[start] = 1;
    let x0 = w, x1 = 0, y0 = h, y1 = 0;
    const inside = [];
    while (stack.length) {
      const i = stack.pop(), ix = i % w, iy = (i - ix) / w;
      if (ix === 0 || iy === 0 || ix === w - 1 || iy === h - 1) return false;
      inside.push(i);
      x0 = Math.min(x0, ix); x1 = Math.max(x1, ix); y0 = Math.min(y0, iy); y1 = Math.max(y1, iy);
      for (const j of [i - 1, i + 1, i - w, i + w]) {
        if (!seen[j] && plane[j] < level) {
          seen[j] = 1;
          stack.push(j);
        }
      }
    }
    for (const i of inside) plane[i] = level;
    this.changed(k, { x0, y0, x1: x1 + 1, y1: y1 + 1 });
    return true;
  }

  /** Puts a whole plane in a class's place, within a change. */
  replace(k, plane) {
    if (!this.before.has(k)) return;
    this.planes[k].set(plane);
    this.changed(k, { x0: 0, y0: 0, x1: this.width, y1: this.height });
  }
}

/** One outline between two lines of points, whichever way each was drawn. */
export function between(first, second) {
  const far = (a, b) => (a.x - b.x) ** 2 + (a.y - b.y) ** 2;
  const [a, b] = [first[0], first[first.length - 1]], [c, d] = [second[0], second[second.length - 1]];
  const crossed = far(b, d) + far(a, c) < far(b, c) + far(a, d);
  return [...first, ...(crossed ? [...second].reverse() : second)];
}

function cut(plane, width, { x0, y0, x1, y1 }) {
  const n = x1 - x0, bytes = new Uint8Array(n * (y1 - y0));
  for (let y = y0; y < y1; y++) bytes.set(plane.subarray(y * width + x0, y * width + x1), (y - y0) * n);
  return bytes;
}

function paste(plane, width, { x0, y0, x1, y1 }, bytes) {
  const n = x1 - x0;
  for (let y = y0; y < y1; y++) plane.set(bytes.subarray((y - y0) * n, (y - y0 + 1) * n), y * width + x0);
}
