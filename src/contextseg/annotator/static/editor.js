// Drawing: tools, pointer, keys, undo. It changes the pixels of the slice in the main view.

import { pressed } from "./keys.js";
import { drawMarks } from "./marks.js";
import { NOBODY, flood, inside, isWhole, pack, sweep, unpack, visible } from "./pixels.js";

const UNDO = 60;
const IDLE_SECONDS = 30;
const RADII = Array.from({ length: 101 }, (_, i) => 0.25 * Math.pow(240, i / 100)); // mm

export class Editor {
  constructor(app, page) {
    this.app = app;
    this.page = page;
    this.done = [];
    this.undone = [];
    this.tool = "brush";
    this.size = 42;
    this.points = null;
    this.pointer = null;
    this.busy = false;
    this.pending = 0; // changes that wait for a slice of the server
    this.touched = performance.now();
    this.spent = 0;
    this.box = app.view.box;
    this.wire();
  }

  wire() {
    const { box } = this;
    box.addEventListener("pointerdown", (event) => this.down(event));
    box.addEventListener("pointermove", (event) => this.move(event));
    box.addEventListener("pointerup", (event) => this.up(event));
    box.addEventListener("pointercancel", (event) => this.up(event));
    box.addEventListener("pointerleave", () => { this.pointer = null; this.drawTop(); });
    box.addEventListener("dblclick", () => this.closePolygon());
    box.addEventListener("contextmenu", (event) => event.preventDefault());
    box.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    window.addEventListener("keydown", (event) => pressed(this, event));
    window.addEventListener("keyup", (event) => { if (event.code === "Space") this.hide(false); });
    window.addEventListener("blur", () => this.hide(false));
    const slider = document.getElementById("size");
    slider.value = this.size;
    slider.addEventListener("input", () => this.setSize(Number(slider.value)));
    this.setSize(this.size);
  }

  get slice() { return this.app.view.slice; }
  get radius() { return RADII[this.size]; }

  // --- tools --------------------------------------------------------------------------------------

  setTool(name) {
    this.cancel();
    this.tool = name;
    for (const button of document.querySelectorAll("#tools button")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === name));
    }
    this.page.announce(name);
    this.drawTop();
  }

  setSize(step) {
    this.size = Math.min(100, Math.max(0, step));
    document.getElementById("size").value = this.size;
    const mm = 2 * this.radius;
    document.getElementById("size-mm").textContent = `${mm < 10 ? mm.toFixed(1) : Math.round(mm)} mm`;
    this.drawTop();
  }

  /** Limit painting to grey values: around those under the pointer, or the window. */
  setLimit(on) {
    const { app } = this;
    document.getElementById("limit").checked = on;
    document.getElementById("limits").hidden = !on;
    app.limit = null;
    if (!on || !this.slice) return;
    let [from, to] = app.windows[app.channel];
    const { low, step } = app.facts.channels[app.channel], grey = this.slice.grey[app.channel];
    const values = [];
    if (this.pointer) {
      sweep(this.slice.shape, app.view.facts.mm, this.pointer, this.pointer, this.radius, (i) => values.push(low + step * grey[i]));
    }
    if (values.length) {
      const mean = values.reduce((a, b) => a + b) / values.length;
      const spread = Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length);
      [from, to] = [mean - 2.5 * spread - step, mean + 2.5 * spread + step];
    }
    document.getElementById("low").value = Number(from.toPrecision(5));
    document.getElementById("high").value = Number(to.toPrecision(5));
    this.readLimit();
  }

  readLimit() {
    const [from, to] = ["low", "high"].map((id) => Number(document.getElementById(id).value));
    this.app.limit = Number.isFinite(from) && Number.isFinite(to) ? [from, to] : null;
  }

  /** What writes a class where it may be written. */
  writer(slice, value) {
    const { app } = this, { drawn } = slice;
    const only = app.only === "any" ? -1 : Number(app.only);
    const { low, step } = app.facts.channels[app.channel], grey = slice.grey[app.channel];
    const limit = value && app.limit ? app.limit.map((v) => (v - low) / step) : null;
    return (i) => {
      if (only >= 0 && drawn[i] !== only && drawn[i] !== value) return;
      if (limit && (grey[i] < limit[0] || grey[i] > limit[1])) return;
      drawn[i] = value;
    };
  }

  /** Begin to change the slice: what is filled in it counts as drawn from now on. */
  begin(slice) {
    const before = pack(slice.drawn);
    slice.busy = true;
    if (!isWhole(slice.drawn)) slice.drawn = visible(slice.drawn, slice.filled);
    return before;
  }

  /** End a change: remember it for undo, and save. */
  commit(slice, before, tool) {
    slice.busy = false;
    const after = pack(slice.drawn);
    const same = before.length === after.length && before.every((v, i) => v === after[i]);
    if (!same) {
      this.done.push({ plane: slice.plane, k: slice.k, key: slice.key, before, after });
      this.undone = [];
      const own = this.done.filter((step) => step.key === slice.key);
      if (own.length > UNDO) this.done.splice(this.done.indexOf(own[0]), 1);
      this.save(slice, tool);
    }
    this.page.refresh(slice);
  }

  save(slice, tool) {
    this.app.saver.put(slice, tool, this.spent, this.app.auto);
    this.spent = 0;
  }

  /** Change the current slice, as soon as it is known. */
  change(tool, work) { return this.waits(() => this.changeNow(tool, work)); }

  /** Count what was asked for and is not done yet. */
  async waits(work) {
    this.pending += 1;
    try { return await work(); } finally { this.pending -= 1; }
  }

  async changeNow(tool, work) {
    const { slice } = this;
    if (slice && !this.app.slices.settled(slice)) {
      await this.app.slices.load(slice, this.app.channel).catch(() => {});
    }
    if (!slice?.drawn || this.slice !== slice || this.busy) return;
    const before = this.begin(slice);
    work(slice);
    this.commit(slice, before, tool);
  }

  accept() { this.change("accept", () => {}); }

  nothing() { this.change("empty", (slice) => slice.drawn.fill(0)); }

  /** Copy from the nearest drawn slice; of two at the same distance the one before. */
  copy() { return this.waits(() => this.copyNow()); }

  async copyNow() {
    const { app, slice } = this;
    if (!slice) return;
    const n = app.facts.planes[app.plane].slices;
    const drawn = app.facts.strip.drawn[app.plane].filter((k) => k !== slice.k);
    const near = drawn.sort((a, b) => Math.abs(a - slice.k) - Math.abs(b - slice.k) || a - b)[0];
    const k = near ?? (slice.k ? slice.k - 1 : Math.min(1, n - 1));
    const other = await app.slices.load(app.slices.get(app.plane, k), app.channel);
    if (this.slice !== slice) return;
    await this.change("copy", () => slice.drawn.set(visible(other.drawn, other.filled)));
    this.page.announce(`copied from slice ${k + 1}`);
  }

  // --- undo ---------------------------------------------------------------------------------------

  undo() { return this.step(this.done, this.undone, "before", "undo"); }
  redo() { return this.step(this.undone, this.done, "after", "redo"); }

  step(from, to, which, tool) { return this.waits(() => this.stepNow(from, to, which, tool)); }

  async stepNow(from, to, which, tool) {
    if (this.busy || this.stepping || !from.length) return;
    this.stepping = true;
    try {
      const step = from.pop();
      const { app } = this;
      if (app.plane !== step.plane || app.index[step.plane] !== step.k) {
        await this.page.actions.undoTo(step.plane, step.k);
      }
      const slice = await app.slices.load(app.slices.get(step.plane, step.k), app.channel);
      slice.drawn = unpack(step[which], slice.drawn.length);
      to.push(step);
      this.save(slice, tool);
      this.page.refresh(slice);
      this.page.announce(tool);
    } finally {
      this.stepping = false;
    }
  }

  forget(key) {
    this.done = this.done.filter((step) => step.key !== key);
    this.undone = this.undone.filter((step) => step.key !== key);
  }

  clear() { this.done = []; this.undone = []; this.cancel(); }

  // --- pointer ------------------------------------------------------------------------------------

  tick() {
    const now = performance.now();
    this.spent += Math.min(IDLE_SECONDS, (now - this.touched) / 1000);
    this.touched = now;
  }

  down(event) {
    const { app } = this;
    if (!app.facts || !this.slice || this.drag) return;
    this.tick();
    this.box.focus({ preventScroll: true });
    this.box.setPointerCapture(event.pointerId);
    const at = app.view.at(event);
    this.pointer = at;
    if (event.button === 2) {
      this.drag = { kind: "window", x: event.clientX, y: event.clientY, window: [...app.windows[app.channel]] };
    } else if (event.button === 1 || event.shiftKey) {
      this.drag = { kind: "pan", x: event.clientX, y: event.clientY, pan: [...app.view.pan] };
    } else if (event.button === 0) {
      this.startTool(at, event.ctrlKey || event.altKey || event.metaKey);
    }
    event.preventDefault();
  }

  startTool(at, erase) {
    const { slice } = this, { cls } = this.app;
    if (!this.app.slices.settled(slice) || !slice.grey[this.app.channel]) return;
    const value = erase || this.tool === "eraser" ? 0 : cls;
    if (this.tool === "polygon") return this.addCorner(at, value);
    this.busy = true;
    if (this.tool === "lasso") {
      this.points = [at];
      this.drag = { kind: "lasso", value, slice };
      return this.drawTop();
    }
    const before = this.begin(slice);
    if (this.tool === "flood") {
      this.floodAt(slice, at, value);
      this.busy = false;
      return this.commit(slice, before, "flood");
    }
    this.drag = { kind: "paint", value, slice, before, last: at, tool: value ? "brush" : "eraser" };
    return this.paintTo(at);
  }

  floodAt(slice, at, value) {
    const [x, y] = at.map(Math.floor), start = y * slice.shape[1] + x;
    const of = slice.drawn[start], { app } = this;
    const { low, step } = app.facts.channels[app.channel], grey = slice.grey[app.channel];
    const limit = app.limit ? app.limit.map((v) => (v - low) / step) : [-1, 65536];
    const same = (i) => slice.drawn[i] === of && grey[i] >= limit[0] && grey[i] <= limit[1];
    const hit = [];
    flood(slice.shape, at, same, (i) => hit.push(i));
    const write = this.writer(slice, value);
    hit.forEach(write);
  }

  paintTo(at) {
    const { drag } = this;
    const write = this.writer(drag.slice, drag.value);
    sweep(drag.slice.shape, this.app.view.facts.mm, drag.last, at, this.radius, write);
    drag.last = at;
    if (!this.frame) {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        this.page.refresh(drag.slice);
      });
    }
  }

  move(event) {
    const { app, drag } = this;
    if (!app.facts || !this.slice) return;
    this.pointer = app.view.at(event);
    if (!drag) return this.hover();
    const ratio = app.view.ratio;
    if (drag.kind === "pan") {
      app.view.pan = [drag.pan[0] + (event.clientX - drag.x) * ratio, drag.pan[1] + (event.clientY - drag.y) * ratio];
      app.view.draw();
    } else if (drag.kind === "window") {
      const [from, to] = drag.window, width = to - from, level = (from + to) / 2;
      const wide = Math.max(width * Math.exp((event.clientX - drag.x) / 250), app.facts.channels[app.channel].step);
      const centre = level + ((event.clientY - drag.y) / 400) * width;
      app.setWindow(centre - wide / 2, centre + wide / 2);
    } else {
      const points = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
      for (const one of points.length ? points : [event]) {
        const at = app.view.at(one);
        if (drag.kind === "paint") this.paintTo(at);
        else this.points.push(at);
      }
    }
    return this.drawTop();
  }

  up(event) {
    const { drag } = this;
    this.drag = null;
    if (!drag) return;
    if (this.box.hasPointerCapture(event.pointerId)) this.box.releasePointerCapture(event.pointerId);
    if (drag.kind === "paint") {
      cancelAnimationFrame(this.frame);
      this.frame = 0;
      this.busy = false;
      this.tick();
      this.commit(drag.slice, drag.before, drag.tool);
    } else if (drag.kind === "lasso") {
      this.busy = false;
      const { points } = this;
      this.points = null;
      this.tick();
      if (event.type === "pointerup" && points.length > 2) this.outline(drag.slice, points, drag.value, "lasso");
    }
    this.drawTop();
    if (this.slice?.stale) this.page.show();
  }

  outline(slice, points, value, tool) {
    const before = this.begin(slice);
    inside(slice.shape, points, this.writer(slice, value));
    this.commit(slice, before, tool);
  }

  addCorner(at, value) {
    if (!this.points) this.polygon = { slice: this.slice, value };
    const points = this.points || (this.points = []);
    const ratio = this.app.view.ratio, [sx, sy] = this.app.view.transform();
    const near = (p) => Math.hypot((p[0] - at[0]) * sx, (p[1] - at[1]) * sy) < 8 * ratio;
    if (points.length > 2 && near(points[0])) return this.closePolygon();
    if (!points.length || !near(points[points.length - 1])) points.push(at);
    return this.drawTop();
  }

  closePolygon() {
    if (this.tool !== "polygon" || !this.points) return false;
    const { points, polygon } = this;
    this.points = this.polygon = null;
    if (points.length > 2 && polygon.slice === this.slice) {
      this.tick();
      this.outline(polygon.slice, points, polygon.value, "polygon");
    }
    this.drawTop();
    return true;
  }

  /** Give up what is half drawn. */
  cancel() {
    if (this.drag?.kind === "paint") {
      this.drag.slice.drawn = unpack(this.drag.before, this.drag.slice.drawn.length);
      this.drag.slice.busy = false;
      this.page.refresh(this.drag.slice);
    }
    this.drag = this.points = this.polygon = null;
    this.busy = false;
    this.drawTop();
  }

  /** The slice changes: what is half drawn ends where it is. */
  leave() {
    this.tick();
    if (this.drag?.kind === "paint") {
      const { slice, before, tool } = this.drag;
      this.drag = null;
      this.busy = false;
      this.commit(slice, before, tool);
    } else {
      this.cancel();
    }
  }

  hover() {
    const { app, slice } = this;
    const [x, y] = this.pointer.map(Math.floor), [rows, columns] = slice.shape;
    const under = document.getElementById("under");
    if (x < 0 || y < 0 || x >= columns || y >= rows || !slice.grey[app.channel]) under.textContent = "";
    else {
      const i = y * columns + x, { low, step } = app.facts.channels[app.channel];
      const value = low + step * slice.grey[app.channel][i];
      const k = slice.drawn[i] === NOBODY ? slice.filled[i] : slice.drawn[i];
      const name = k ? ` · ${app.classes[k - 1]?.name ?? k}` : "";
      under.textContent = `${Number.isInteger(value) ? value : value.toPrecision(4)}${name}`;
    }
    this.drawTop();
  }

  drawTop() { drawMarks(this); }

  wheel(event) {
    event.preventDefault();
    const { app } = this;
    if (!app.facts) return;
    if (event.ctrlKey || event.metaKey) {
      app.view.zoomBy(Math.exp(-event.deltaY / 300), event);
      this.drawTop();
      return;
    }
    if (event.shiftKey) {
      this.setSize(this.size - 3 * Math.sign(event.deltaY || event.deltaX));
      return;
    }
    this.rolled = (this.rolled || 0) + (event.deltaMode ? event.deltaY * 40 : event.deltaY);
    const steps = Math.trunc(this.rolled / 40);
    if (!steps) return;
    this.rolled -= 40 * steps;
    const k = app.index[app.plane] + Math.max(-3, Math.min(3, Math.abs(this.rolled) < 40 ? Math.sign(steps) * Math.ceil(Math.abs(steps) / 3) : steps));
    this.page.go(k);
  }

  // --- keys ---------------------------------------------------------------------------------------

  hide(hidden) {
    if (this.app.hidden === hidden) return;
    this.app.hidden = hidden;
    this.page.show();
  }

  /** Paint at the cross. */
  dab() {
    const at = this.app.crossOf(this.app.plane);
    this.keyed = true;
    this.change(this.tool, (slice) => {
      const value = this.tool === "eraser" ? 0 : this.app.cls;
      sweep(slice.shape, this.app.view.facts.mm, at, at, this.radius, this.writer(slice, value));
    });
  }
}
