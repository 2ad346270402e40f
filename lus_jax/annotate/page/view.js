// Draws a frame and the classes over it: by WebGL2 in one shader, else on a 2D canvas. What is drawn
// is never read back: the confidences are those of paint.js.

const VERTEX = `#version 300 es
in vec2 corner;
uniform vec2 origin, scale, screen;
uniform vec2 size;
out vec2 at;
void main() {
  at = corner;
  vec2 p = (origin + corner * size * scale) / screen * 2. - 1.;
  gl_Position = vec4(p.x, -p.y, 0., 1.);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
precision highp sampler2DArray;
in vec2 at;
uniform sampler2D frame, heat;
uniform sampler2DArray masks;
uniform vec4 colours[32];
uniform int count;
uniform float least, contrast, brightness;
uniform bool cut, heated;
out vec4 shown;
void main() {
  float grey = clamp((texture(frame, at).r - .5) * contrast + .5 + brightness, 0., 1.);
  vec3 colour = vec3(grey);
  for (int k = 0; k < count; k++) {
    float value = texture(masks, vec3(at, float(k))).r;
    if (cut) value = value * 255. >= least - .25 ? 1. : 0.;
    colour = mix(colour, colours[k].rgb, colours[k].a * value);
  }
  if (heated) colour = mix(colour, vec3(1., .35, .1), .9 * texture(heat, at).r);
  shown = vec4(colour, 1.);
}`;

/**
 * What both views draw: {x, y, scale} places the frame (in device pixels), colours are [r, g, b, opacity]
 * in 0..1 a class, least is the least value of the label or 0, heat whether the other map is shown.
 */
export function makeView(canvas, draw = null) {
  const gl = draw === "2d" || (draw === null && isImitated()) ? null
    : canvas.getContext("webgl2", { alpha: false, antialias: false, powerPreference: "high-performance" });
  return gl ? new WebGLView(canvas, gl) : new PlainView(canvas);
}

/** Whether no GPU draws: then the 2D canvas, which draws no more than what changed, is faster. */
function isImitated() {
  const gl = document.createElement("canvas").getContext("webgl2");
  const named = gl?.getExtension("WEBGL_debug_renderer_info");
  const found = /swiftshader|llvmpipe|softpipe|software|basic render/i.test(named ? gl.getParameter(named.UNMASKED_RENDERER_WEBGL) : "");
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return found;
}

class WebGLView {
  constructor(canvas, gl) {
    this.kind = "webgl2";
    this.canvas = canvas;
    this.gl = gl;
    this.lost = false;
    canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); this.lost = true; });
    canvas.addEventListener("webglcontextrestored", () => { this.start(); this.lost = false; this.onrestored?.(); });
    this.start();
  }

  start() {
    const gl = this.gl, program = gl.createProgram();
    for (const [type, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.bindAttribLocation(program, 0, "corner");
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    this.at = (name) => gl.getUniformLocation(program, name);
    this.places = Object.fromEntries(
      ["origin", "scale", "screen", "size", "frame", "heat", "masks", "colours", "count", "least", "contrast", "brightness", "cut", "heated"]
        .map((name) => [name, this.at(name)]));
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([0, 0, 1, 0, 0, 1, 1, 1]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    this.textures = [gl.createTexture(), gl.createTexture(), gl.createTexture()];
    ["frame", "masks", "heat"].forEach((name, i) => gl.uniform1i(this.places[name], i));
    this.shape = null;
  }

  /** Makes room for frames of a size and K classes. */
  resize(width, height, count) {
    const gl = this.gl;
    if (String(this.shape) === String([width, height, count])) return;
    this.shape = [width, height, count];
    for (const [i, target] of [[0, gl.TEXTURE_2D], [1, gl.TEXTURE_2D_ARRAY], [2, gl.TEXTURE_2D]]) {
      gl.activeTexture(gl.TEXTURE0 + i);
      // Its room cannot change.
      gl.deleteTexture(this.textures[i]);
      this.textures[i] = gl.createTexture();
      gl.bindTexture(target, this.textures[i]);
      if (i === 1) gl.texStorage3D(target, 1, gl.R8, width, height, count);
      else gl.texStorage2D(target, 1, gl.R8, width, height);
      gl.texParameteri(target, gl.TEXTURE_MIN_FILTER, i === 1 ? gl.NEAREST : gl.LINEAR);
      gl.texParameteri(target, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
      gl.texParameteri(target, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
      gl.texParameteri(target, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    }
  }

  setFrame(bytes) {
    this.plane(0, bytes);
  }

  setHeat(bytes) {
    this.plane(2, bytes);
  }

  plane(i, bytes) {
    const gl = this.gl, [width, height] = this.shape;
    gl.activeTexture(gl.TEXTURE0 + i);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, width, height, gl.RED, gl.UNSIGNED_BYTE, bytes);
  }

  /** Takes over a box of a class's plane. */
  setMask(k, plane, { x0, y0, x1, y1 }) {
    const gl = this.gl;
    gl.activeTexture(gl.TEXTURE1);
    gl.pixelStorei(gl.UNPACK_ROW_LENGTH, this.shape[0]);
    gl.pixelStorei(gl.UNPACK_IMAGE_HEIGHT, this.shape[1]);
    gl.pixelStorei(gl.UNPACK_SKIP_PIXELS, x0);
    gl.pixelStorei(gl.UNPACK_SKIP_ROWS, y0);
    gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, x0, y0, k, x1 - x0, y1 - y0, 1, gl.RED, gl.UNSIGNED_BYTE, plane);
    gl.pixelStorei(gl.UNPACK_ROW_LENGTH, 0);
    gl.pixelStorei(gl.UNPACK_IMAGE_HEIGHT, 0);
    gl.pixelStorei(gl.UNPACK_SKIP_PIXELS, 0);
    gl.pixelStorei(gl.UNPACK_SKIP_ROWS, 0);
  }

  draw({ x, y, scale, colours, least = 0, contrast = 1, brightness = 0, heat = false, smooth = true }) {
    if (this.lost || !this.shape) return;
    const gl = this.gl, at = this.places, [width, height, count] = this.shape;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(0.055, 0.067, 0.086, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.activeTexture(gl.TEXTURE0);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, smooth && scale < 4 ? gl.LINEAR : gl.NEAREST);
    gl.uniform2f(at.origin, x, y);
    gl.uniform2f(at.scale, scale, scale);
    gl.uniform2f(at.size, width, height);
    gl.uniform2f(at.screen, this.canvas.width, this.canvas.height);
    gl.uniform4fv(at.colours, new Float32Array(colours.flat()));
    gl.uniform1i(at.count, count);
    gl.uniform1f(at.least, least);
    gl.uniform1i(at.cut, least > 0 ? 1 : 0);
    gl.uniform1f(at.contrast, contrast);
    gl.uniform1f(at.brightness, brightness);
    gl.uniform1i(at.heated, heat ? 1 : 0);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }
}

class PlainView {
  constructor(canvas) {
    this.kind = "2d";
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.buffer = document.createElement("canvas");
    this.masks = [];
    this.last = "";
  }

  resize(width, height, count) {
    if (String(this.shape) === String([width, height, count])) return;
    this.shape = [width, height, count];
    this.buffer.width = width;
    this.buffer.height = height;
    this.image = new ImageData(width, height);
    this.frame = this.heat = null;
    this.masks = Array(count).fill(null);
    this.stale = this.whole();
  }

  whole() {
    return { x0: 0, y0: 0, x1: this.shape[0], y1: this.shape[1] };
  }

  setFrame(bytes) {
    this.frame = bytes;
    this.stale = this.whole();
  }

  setHeat(bytes) {
    this.heat = bytes;
    this.stale = this.whole();
  }

  setMask(k, plane, box) {
    this.masks[k] = plane;
    const s = this.stale;
    this.stale = s
      ? { x0: Math.min(s.x0, box.x0), y0: Math.min(s.y0, box.y0), x1: Math.max(s.x1, box.x1), y1: Math.max(s.y1, box.y1) }
      : box;
  }

  draw({ x, y, scale, colours, least = 0, contrast = 1, brightness = 0, heat = false, smooth = true }) {
    if (!this.shape || !this.frame) return;
    const look = JSON.stringify([colours, least, contrast, brightness, heat]);
    if (look !== this.last) this.stale = this.whole();
    this.last = look;
    if (this.stale) {
      blend(this.image, this.frame, this.masks, { colours, least, contrast, brightness, heat: heat ? this.heat : null }, this.stale);
      const { x0, y0, x1, y1 } = this.stale;
      this.buffer.getContext("2d").putImageData(this.image, 0, 0, x0, y0, x1 - x0, y1 - y0);
      this.stale = null;
    }
    const to = this.context;
    to.setTransform(1, 0, 0, 1, 0, 0);
    to.fillStyle = "#0e1116";
    to.fillRect(0, 0, this.canvas.width, this.canvas.height);
    to.imageSmoothingEnabled = smooth && scale < 4;
    to.setTransform(scale, 0, 0, scale, x, y);
    to.drawImage(this.buffer, 0, 0);
  }
}

/** Blends a frame and its classes into opaque pixels, as the shader does. */
export function blend(image, frame, masks, { colours, least = 0, contrast = 1, brightness = 0, heat = null }, box) {
  const { x0, y0, x1, y1 } = box, w = image.width, data = image.data;
  const table = new Float32Array(256);
  for (let v = 0; v < 256; v++) table[v] = 255 * Math.min(1, Math.max(0, (v / 255 - 0.5) * contrast + 0.5 + brightness));
  for (let y = y0; y < y1; y++) {
    for (let x = x0, i = y * w + x0; x < x1; x++, i++) {
      const grey = table[frame[i]];
      let r = grey, g = grey, b = grey;
      for (let k = 0; k < masks.length; k++) {
        const value = masks[k] ? masks[k][i] : 0;
        if (!value) continue;
        const share = colours[k][3] * (least ? (value >= least ? 1 : 0) : value / 255);
        r += share * (255 * colours[k][0] - r);
        g += share * (255 * colours[k][1] - g);
        b += share * (255 * colours[k][2] - b);
      }
      if (heat && heat[i]) {
        const share = (0.9 * heat[i]) / 255;
        r += share * (255 - r);
        g += share * (89 - g);
        b += share * (26 - b);
      }
      data[4 * i] = r;
      data[4 * i + 1] = g;
      data[4 * i + 2] = b;
      data[4 * i + 3] = 255;
    }
  }
}
