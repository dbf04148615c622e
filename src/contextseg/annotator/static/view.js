// One view of one plane: a picture in grey, labels over it, and what the pointer shows.

import { NOBODY, outlines } from "./pixels.js";

const LETTERS = {
  axial: ["A", "P", "R", "L"], coronal: ["S", "I", "R", "L"], sagittal: ["S", "I", "A", "P"],
};

export class View {
  constructor(box, small) {
    this.box = box;
    this.small = small;
    this.base = box.querySelector("canvas.base");
    this.top = box.querySelector("canvas.top");
    this.grey = document.createElement("canvas");
    this.paint = document.createElement("canvas");
    this.zoom = 1;
    this.pan = [0, 0];
    this.slice = null;
    new ResizeObserver(() => this.resize()).observe(box);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = this.box.getBoundingClientRect();
    this.width = Math.max(1, Math.round(width * ratio));
    this.height = Math.max(1, Math.round(height * ratio));
    this.ratio = ratio;
    for (const canvas of [this.base, this.top]) {
      canvas.width = this.width;
      canvas.height = this.height;
    }
    this.draw();
    if (this.overTop) this.overTop();
  }

  /** Show a plane: {shape: [rows, columns], mm: [row, column]}. */
  setPlane(name, facts) {
    if (this.plane === name && this.facts === facts) return;
    this.plane = name;
    this.facts = facts;
    [this.grey.height, this.grey.width] = facts.shape;
    [this.paint.height, this.paint.width] = facts.shape;
    this.image = new ImageData(facts.shape[1], facts.shape[0]);
    this.image32 = new Uint32Array(this.image.data.buffer);
    this.colours = new ImageData(facts.shape[1], facts.shape[0]);
    this.colours32 = new Uint32Array(this.colours.data.buffer);
    this.slice = null;
    this.fit();
  }

  fit() { this.zoom = 1; this.pan = [0, 0]; }

  /** [x scale, y scale, x offset, y offset] from pixels of the slice to those of the screen. */
  transform() {
    const [rows, columns] = this.facts.shape, [my, mx] = this.facts.mm;
    const margin = this.small ? 0.98 : 0.94;
    const scale = margin * this.zoom *
      Math.min(this.width / (columns * mx), this.height / (rows * my));
    const sx = scale * mx, sy = scale * my;
    return [sx, sy, (this.width - sx * columns) / 2 + this.pan[0],
      (this.height - sy * rows) / 2 + this.pan[1]];
  }

  /** Where a pointer is, in pixels of the slice. */
  at(event) {
    const { left, top } = this.box.getBoundingClientRect();
    const [sx, sy, ox, oy] = this.transform();
    return [((event.clientX - left) * this.ratio - ox) / sx,
      ((event.clientY - top) * this.ratio - oy) / sy];
  }

  /** Zoom around a pointer. */
  zoomBy(factor, event) {
    const before = event ? this.at(event) : null;
    this.zoom = Math.min(40, Math.max(0.5, this.zoom * factor));
    if (before) {
      const [sx, sy, ox, oy] = this.transform(), after = this.at(event);
      this.pan[0] += (after[0] - before[0]) * sx;
      this.pan[1] += (after[1] - before[1]) * sy;
    }
    this.draw();
  }

  /** Grey values through a table of 65536 bytes. */
  setGrey(values, table) {
    const out = this.image32;
    for (let i = 0; i < out.length; i++) {
      const g = table[values[i]];
      out[i] = 0xff000000 | (g << 16) | (g << 8) | g;
    }
    this.grey.getContext("2d").putImageData(this.image, 0, 0);
  }

  /** Labels: what is drawn is stronger than what is filled. `colours`: "#rrggbb" of each class. */
  setLabels(drawn, filled, colours, alpha) {
    const strong = new Uint32Array(256), weak = new Uint32Array(256);
    colours.forEach((colour, i) => {
      const n = parseInt(colour.slice(1), 16);
      const bgr = ((n & 255) << 16) | (n & 0xff00) | (n >> 16);
      strong[i + 1] = ((Math.round(255 * alpha) << 24) | bgr) >>> 0;
      weak[i + 1] = ((Math.round(255 * alpha * 0.55) << 24) | bgr) >>> 0;
    });
    const out = this.colours32, seen = new Uint8Array(drawn.length);
    let partly = false;
    for (let i = 0; i < out.length; i++) {
      const d = drawn[i];
      if (d === NOBODY) {
        partly = true;
        seen[i] = filled[i];
        out[i] = weak[filled[i]];
      } else {
        seen[i] = d;
        out[i] = strong[d];
      }
    }
    this.partly = partly;
    this.paint.getContext("2d").putImageData(this.colours, 0, 0);
    this.paths = outlines(seen, this.facts.shape);
    this.classColours = colours;
  }

  draw() {
    if (!this.facts) return;
    const context = this.base.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.width, this.height);
    if (!this.slice) return;
    const [sx, sy, ox, oy] = this.transform();
    context.setTransform(sx, 0, 0, sy, ox, oy);
    context.imageSmoothingEnabled = Boolean(this.smooth);
    context.imageSmoothingQuality = "high";
    context.drawImage(this.grey, 0, 0);
    if (!this.hidden) {
      context.imageSmoothingEnabled = false;
      context.drawImage(this.paint, 0, 0);
      this.drawOutlines(context, [sx, sy, ox, oy]);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    this.drawLetters(context);
  }

  drawOutlines(context, [sx, sy, ox, oy]) {
    const matrix = new DOMMatrix([sx, 0, 0, sy, ox, oy]);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.lineJoin = "round";
    context.setLineDash(this.partly && !this.small ? [5 * this.ratio, 3 * this.ratio] : []);
    for (const [k, path] of this.paths || []) {
      const shown = new Path2D();
      shown.addPath(path, matrix);
      context.lineWidth = (this.small ? 1.25 : 1.75) * this.ratio;
      context.strokeStyle = this.classColours[k - 1] || "#fff";
      context.stroke(shown);
    }
    context.setLineDash([]);
  }

  drawLetters(context) {
    const [up, down, left, right] = LETTERS[this.plane];
    const size = (this.small ? 11 : 13) * this.ratio, gap = (this.small ? 10 : 14) * this.ratio;
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    const text = (word, x, y) => {
      context.lineWidth = 3 * this.ratio;
      context.strokeStyle = "rgba(0, 0, 0, 0.8)";
      context.strokeText(word, x, y);
      context.fillStyle = "#c8d2dc";
      context.fillText(word, x, y);
    };
    text(up, this.width / 2, gap);
    text(down, this.width / 2, this.height - gap);
    text(left, gap, this.height / 2);
    text(right, this.width - gap, this.height / 2);
    if (!this.small) this.drawScale(context, text);
  }

  drawScale(context, text) {
    const perMm = this.transform()[0] / this.facts.mm[1];
    const length = [200, 100, 50, 20, 10, 5, 2, 1].find((mm) => mm * perMm < this.width / 4) || 1;
    const x1 = this.width - 16 * this.ratio, y = this.height - 18 * this.ratio;
    const x0 = x1 - length * perMm;
    context.lineWidth = 2 * this.ratio;
    context.strokeStyle = "#c8d2dc";
    context.beginPath();
    context.moveTo(x0, y - 4 * this.ratio);
    context.lineTo(x0, y);
    context.lineTo(x1, y);
    context.lineTo(x1, y - 4 * this.ratio);
    context.stroke();
    text(length >= 10 ? `${length / 10} cm` : `${length} mm`, (x0 + x1) / 2, y - 12 * this.ratio);
  }

  /** The pointer's canvas: `marks(context, toScreen, ratio)` draws on it. */
  drawTop(marks) {
    const context = this.top.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    if (!this.facts || !marks) return;
    const [sx, sy, ox, oy] = this.transform();
    marks(context, ([x, y]) => [x * sx + ox, y * sy + oy], this.ratio, [sx, sy]);
  }
}
