// The page: which case, which plane, which slice; what is shown of them.

import { Saver, WHO, askJson, ask, listen } from "./api.js";
import { Editor } from "./editor.js";
import { NOBODY, counts, isWhole } from "./pixels.js";
import { Slices } from "./slices.js";
import { Strip } from "./strip.js";
import { KEYS, TOOLS } from "./tools.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const PLANES = ["axial", "coronal", "sagittal"];
const make = (tag, text, more = {}) => Object.assign(document.createElement(tag), { textContent: text, ...more });

export const app = {
  cases: [], classes: [], network: false, facts: null, slices: null, jobs: new Map(),
  plane: "axial", index: { axial: 0, coronal: 0, sagittal: 0 }, channel: 0,
  cls: 1, alpha: 0.34, hidden: false, only: "any", limit: null, auto: true, windows: [],
};

const views = [new View($("main-view"), false), new View($("side-0"), true), new View($("side-1"), true)];
app.view = views[0];
const strip = new Strip($("strip"), (k) => go(k));
const saver = new Saver(showSaved, showConflict);
app.saver = saver;
const editor = new Editor(app, { go, show, refresh, colours, announce, plane: setPlane, actions: { fill, refine, next, finish, help, undoTo: goTo } });
app.editor = editor;

// --- notices --------------------------------------------------------------------------------------

function showSaved(state, reason = "") {
  const pill = $("saved");
  pill.className = { saved: "pill", saving: "pill busy", failed: "pill bad" }[state];
  pill.textContent = { saved: "Saved", saving: "Saving …", failed: `Not saved: ${reason}` }[state];
  pill.title = state === "failed" ? `${reason} The drawing is kept in this tab, and is tried again.` : "";
}

function showConflict(slice, message) {
  const dialog = $("conflict");
  dialog.querySelector("p").textContent =
    `${message} Yours is kept in this tab until you choose. Other slices are saved as usual.`;
  dialog.onclose = async () => {
    const keep = dialog.returnValue !== "theirs";
    saver.settle(slice, keep);
    if (!keep) {
      slice.stale = true;
      editor.forget(slice.key);
      await show();
    }
  };
  if (!dialog.open) dialog.showModal();
}

function message(text) {
  $("message").textContent = text || "";
  $("message").hidden = !text;
}

let toastTimer = 0;
function toast(text) {
  message(text);
  announce(text);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => message(""), 3200);
}

function announce(text) { $("live").textContent = text; }

async function guarded(work) {
  try {
    return await work();
  } catch (error) {
    toast(error.message);
    return null;
  }
}

// --- cases ----------------------------------------------------------------------------------------

async function loadCases() {
  const answer = await askJson("GET", "/api/cases");
  Object.assign(app, { cases: answer.cases, classes: answer.classes, network: answer.network });
  answer.jobs.forEach(showJob);
  $("refine").disabled = !app.network;
  for (const key of document.querySelectorAll(".key.sure, .key.unsure")) key.hidden = !app.network;
  if (!app.network) $("refine").title = "Start with --model RUN to fill with a network";
  showCases();
  showClasses();
}

function showCases() {
  const list = $("cases"), finished = app.cases.filter((row) => row.state === "finished").length;
  $("progress").textContent = `${finished} of ${app.cases.length}`;
  list.replaceChildren(...app.cases.map((row) => {
    const button = make("button", "", { className: row.state });
    const expected = row.expected_dice === null ? "" : row.expected_dice.toFixed(2);
    const facts = row.state === "new" ? expected : row.slices || "";
    button.append(make("i", ""), make("span", row.name), make("small", facts));
    button.title = `${row.state}; ${row.slices} drawn slices, ${Math.round(row.seconds / 6) / 10} minutes` +
      (expected ? `; the model expects a Dice of ${expected}` : "");
    button.setAttribute("aria-label", `${row.name}, ${row.state}, ${row.slices} slices`);
    button.setAttribute("aria-current", String(app.facts !== null && row.n === app.facts.n));
    button.onclick = () => openCase(row.n);
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  $("train").disabled = finished < 2;
}

export async function openCase(n) {
  if (!(await saver.idle()) && saver.unsaved) {
    return toast(`${saver.unsaved} slices are not saved yet: they would be lost`);
  }
  message("Opening …");
  const facts = await guarded(() => askJson("POST", `/api/cases/${n}/open`));
  if (!facts) return null;
  const same = app.facts && app.facts.n === facts.n;
  app.facts = facts;
  app.slices = new Slices(facts, `${facts.name}-${facts.shape.join("x")}-${Date.now()}`);
  app.windows = facts.channels.map((channel) => [...channel.window]);
  app.channel = 0;
  if (!same) {
    editor.clear();
    app.plane = facts.strip.plane;
    for (const plane of PLANES) app.index[plane] = facts.planes[plane].slices >> 1;
    const { drawn, suggested } = facts.strip;
    const start = suggested ?? drawn[app.plane][0];
    if (start !== undefined && start !== null) app.index[app.plane] = start;
  }
  $("case-name").textContent = facts.name;
  document.title = `${facts.name} · contextseg annotate`;
  message("");
  arrange();
  showCases();
  showPresets();
  showSaved("saved");
  await show();
  announce(`${facts.name} is open`);
  return facts;
}

function arrange() {
  const order = [app.plane, ...PLANES.filter((plane) => plane !== app.plane)];
  views.forEach((view, i) => {
    view.setPlane(order[i], app.facts.planes[order[i]]);
    view.resize();
    if (i) {
      view.box.querySelector("b").textContent = order[i];
      view.box.querySelector(".swap").setAttribute("aria-label", `Draw in the ${order[i]} plane`);
    }
  });
}

function setPlane(plane) {
  if (!app.facts || plane === app.plane) return;
  editor.cancel();
  app.plane = plane;
  arrange();
  show();
}

// --- slices ---------------------------------------------------------------------------------------

function go(k) {
  if (!app.facts) return;
  const n = app.facts.planes[app.plane].slices;
  const before = app.index[app.plane];
  app.index[app.plane] = Math.min(n - 1, Math.max(0, k));
  app.direction = Math.sign(app.index[app.plane] - before) || app.direction || 1;
  if (before !== app.index[app.plane]) {
    editor.leave();
    show();
  }
}

async function goTo(plane, k) {
  setPlane(plane);
  go(k);
  await show();
}

export const current = () => app.slices.get(app.plane, app.index[app.plane]);

function colours() { return app.classes.map((kind) => kind.colour); }

function table(channel) {
  const { low, step } = app.facts.channels[channel], [from, to] = app.windows[channel];
  const key = `${low} ${step} ${from} ${to}`;
  if (app.tableKey !== key) {
    const out = new Uint8ClampedArray(65536), scale = 255 / Math.max(1e-9, to - from);
    for (let g = 0; g < 65536; g++) out[g] = (low + step * g - from) * scale;
    app.table = out;
    app.tableKey = key;
  }
  return app.table;
}

function paintView(view, slice) {
  view.slice = slice;
  view.hidden = app.hidden;
  view.smooth = $("smooth").checked;
  view.setGrey(slice.grey[app.channel], table(app.channel));
  view.setLabels(slice.drawn, slice.filled, colours(), app.alpha);
  view.draw();
}

/** Show the current slice in all views, as soon as it is here. */
async function show() {
  if (!app.facts) return;
  const wanted = views.map((view) => app.slices.get(view.plane, app.index[view.plane]));
  const { slices, channel } = app;
  showTexts(wanted[0]);
  await Promise.all(wanted.map(async (slice, i) => {
    const here = () => slices === app.slices && channel === app.channel &&
      slice.key === slices.key(views[i].plane, app.index[views[i].plane]);
    if (slices.ready(slice, channel)) paintView(views[i], slice);
    else if (views[i].slice && views[i].slice.key !== slice.key) views[i].box.setAttribute("aria-busy", "true");
    try {
      if (!slices.ready(slice, channel) || slice.stale) {
        await slices.load(slice, channel);
        if (here() && slices.ready(slice, channel)) paintView(views[i], slice);
      }
    } catch (error) {
      if (here() && i === 0) toast(error.message);
    }
    views[i].box.removeAttribute("aria-busy");
  }));
  if (slices !== app.slices) return;
  showTexts(current());
  crosses();
  prefetch();
}

/** Draw the labels of the main view again, after a stroke. */
function refresh(slice) {
  if (app.view.slice !== slice) return;
  app.view.setLabels(slice.drawn, slice.filled, colours(), app.alpha);
  app.view.draw();
  showTexts(slice);
}

let prefetching = null;
function prefetch() {
  clearTimeout(prefetching);
  prefetching = setTimeout(() => {
    const n = app.facts.planes[app.plane].slices, k = app.index[app.plane];
    for (const step of [1, 2, -1, 3]) {
      const j = k + step * (app.direction || 1);
      if (j >= 0 && j < n) {
        app.slices.load(app.slices.get(app.plane, j), app.channel).catch(() => {});
      }
    }
  }, 60);
}

function crosses() {
  views.forEach((view, i) => {
    view.overTop = i ? () => view.drawTop((context, toScreen, ratio) => {
      const other = crossOf(view.plane);
      const [x, y] = toScreen([other[0], other[1]]);
      context.strokeStyle = "rgba(93, 177, 255, 0.75)";
      context.lineWidth = ratio;
      context.beginPath();
      context.moveTo(x, 0); context.lineTo(x, view.height);
      context.moveTo(0, y); context.lineTo(view.width, y);
      context.stroke();
    }) : () => editor.drawTop();
    view.overTop();
  });
}

/** The cross in a plane, [x, y] in its pixels. */
function crossOf(plane) {
  const { axial, coronal, sagittal } = app.index;
  const up = app.facts.planes.axial.slices - axial - 0.5;
  return { axial: [sagittal + 0.5, coronal + 0.5], coronal: [sagittal + 0.5, up], sagittal: [coronal + 0.5, up] }[plane];
}
app.crossOf = crossOf;

app.setCross = (plane, [x, y]) => {
  const n = (p, v) => Math.min(app.facts.planes[p].slices - 1, Math.max(0, Math.floor(v)));
  const up = app.facts.planes.axial.slices - 1 - Math.floor(y);
  if (plane === "axial") Object.assign(app.index, { sagittal: n("sagittal", x), coronal: n("coronal", y) });
  if (plane === "coronal") Object.assign(app.index, { sagittal: n("sagittal", x), axial: n("axial", up) });
  if (plane === "sagittal") Object.assign(app.index, { coronal: n("coronal", x), axial: n("axial", up) });
  show();
};

// --- texts ----------------------------------------------------------------------------------------

function showTexts(slice) {
  const k = app.index[app.plane], n = app.facts.planes[app.plane].slices;
  $("where").textContent = `${app.plane[0].toUpperCase()}${app.plane.slice(1)} ${k + 1} / ${n}`;
  const [from, to] = app.windows[app.channel];
  $("window-text").textContent = `L ${tidy((from + to) / 2)}  W ${tidy(to - from)}`;
  if (document.activeElement !== $("level")) $("level").value = tidy((from + to) / 2);
  if (document.activeElement !== $("width")) $("width").value = tidy(to - from);
  const state = $("state");
  if (slice && slice.drawn) {
    const whole = isWhole(slice.drawn), some = slice.filled.some((v) => v > 0);
    state.textContent = whole ? "drawn" : some ? "filled, not looked at" : "not drawn";
    state.className = whole ? "drawn" : "";
    showCounts(slice);
  }
  strip.show(n, k, app.facts.strip, app.plane);
  showHint();
}

const tidy = (v) => (Math.abs(v) >= 100 || Number.isInteger(v) ? Math.round(v) : Number(v.toPrecision(3)));

function showCounts(slice) {
  const n = counts(slice.drawn), filled = counts(slice.filled);
  const whole = n[NOBODY] === 0;
  [...$("classes").children].forEach((button, i) => {
    const pixels = whole ? n[i + 1] : Math.max(n[i + 1], filled[i + 1]);
    button.querySelector("small").textContent = pixels ? `${pixels} px` : "";
  });
}

function showHint() {
  const facts = app.facts.strip, drawn = facts.drawn[facts.plane];
  const hint = $("hint"), name = app.classes[app.cls - 1]?.name || "structure";
  const say = (...parts) => hint.replaceChildren(...parts);
  if (!drawn.length) {
    say(make("b", "Start: "), `draw the ${name} in a slice through its middle. The lasso (L) is the quickest.`);
  } else if (drawn.length === 1) {
    say(make("b", "Next: "), "draw its first slice and its last one. The slices between fill by themselves.");
  } else if (facts.suggested !== null) {
    say(make("b", `Draw slice ${facts.suggested + 1} next (N): `), facts.why.replace(/from (\d+) to (\d+)/, (_, a, b) => `from ${+a + 1} to ${+b + 1}`) + ".");
  } else {
    say("Every slice is drawn.");
  }
}

function showClasses() {
  const box = $("classes");
  box.replaceChildren(...app.classes.map((kind, i) => {
    const button = make("button", "");
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", String(app.cls === i + 1));
    const swatch = document.createElement("i");
    swatch.style.setProperty("--colour", kind.colour);
    button.append(swatch, make("span", kind.name), make("small", ""));
    if (i < 9) button.append(make("kbd", String(i + 1)));
    button.onclick = () => choose(i + 1);
    return button;
  }));
  const only = $("only"), before = only.value;
  const options = [["any", "everything"], ["0", "background"], ...app.classes.map((kind, i) => [String(i + 1), kind.name])];
  only.replaceChildren(...options.map(([value, text]) => make("option", text, { value })));
  only.value = options.some(([value]) => value === before) ? before : "any";
}

export function choose(k) {
  if (k < 1 || k > app.classes.length) return;
  app.cls = k;
  [...$("classes").children].forEach((b, i) => b.setAttribute("aria-checked", String(i + 1 === k)));
  announce(`class ${app.classes[k - 1].name}`);
  if (app.facts) showHint();
}
app.choose = choose;

function showPresets() {
  const { presets } = app.facts.channels[app.channel];
  $("presets").replaceChildren(...Object.entries(presets).map(([name, range]) => {
    const button = make("button", name);
    button.onclick = () => setWindow(...range);
    return button;
  }));
  const many = app.facts.channels.length > 1;
  $("channels").hidden = !many;
  $("channels").replaceChildren(...app.facts.channels.map((_, i) => {
    const button = make("button", `channel ${i + 1}`);
    button.setAttribute("aria-pressed", String(i === app.channel));
    button.onclick = () => setChannel(i);
    return button;
  }));
}

function setChannel(i) {
  app.channel = i % app.facts.channels.length;
  showPresets();
  show();
}
app.setChannel = setChannel;

function setWindow(from, to) {
  const least = app.facts.channels[app.channel].step;
  app.windows[app.channel] = [from, Math.max(to, from + least)];
  for (const view of views) {
    if (!view.slice || !view.slice.grey[app.channel]) continue;
    view.setGrey(view.slice.grey[app.channel], table(app.channel));
    view.draw();
  }
  showTexts(current());
}
app.setWindow = setWindow;

// --- actions --------------------------------------------------------------------------------------

async function fill() {
  if (!(await saver.idle())) return;
  await guarded(async () => {
    app.facts.strip = await askJson("POST", `/api/cases/${app.facts.n}/fill`);
    app.slices.spoil(() => true);
    await show();
    announce("filled");
  });
}

async function refine() {
  if (!app.network) return toast("Start with --model RUN to fill with a network.");
  if (!(await saver.idle())) return null;
  return guarded(() => askJson("POST", `/api/cases/${app.facts.n}/refine`));
}

async function next() {
  await saver.idle();
  const { suggested, plane } = app.facts.strip;
  if (suggested === null) return toast("Draw a slice first.");
  return goTo(plane, suggested);
}

async function finish(accept = false) {
  if (!(await saver.idle())) return;
  const answer = await guarded(() => askJson("POST", `/api/cases/${app.facts.n}/finish?accept=${accept ? 1 : 0}`));
  if (!answer) return;
  const name = app.facts.name;
  await loadCases();
  if (answer.next !== null) await openCase(answer.next);
  toast(`${name} is finished.`);
}

function help() { $("help-dialog").showModal(); }

function showJob(job) {
  const box = $("job"), over = ["done", "failed", "cancelled"].includes(job.state);
  const text = { refine: "Filling with the network", train: "Training" }[job.kind] || job.kind;
  if (over) {
    app.jobs.delete(job.number);
    if (job.state === "failed") toast(job.note);
    else toast(job.state === "done" ? `${text}: done.` : `${text}: cancelled.`);
  } else {
    app.jobs.set(job.number, job);
  }
  const [shown] = app.jobs.values();
  box.hidden = !shown;
  if (!shown) return;
  box.querySelector("span").textContent =
    `${{ refine: "Filling with the network", train: "Training" }[shown.kind]}${shown.note ? `: ${shown.note}` : ""} …`;
  const bar = box.querySelector("progress");
  if (shown.of) Object.assign(bar, { max: shown.of, value: shown.done });
  else bar.removeAttribute("value");
  box.querySelector("button").onclick = () => guarded(() => ask("DELETE", `/api/jobs/${shown.number}`));
}

// --- events ---------------------------------------------------------------------------------------

saver.saved = (slice) => app.slices?.spoil((other) => other.plane !== slice.plane);

function heard(event) {
  if (event.type === "job") return showJob(event);
  if (event.type === "worklist" || event.type === "classes") return loadCases().catch(() => {});
  if (event.type === "error") return toast(event.error);
  if (!app.facts) return null;
  if (event.type === "reset") app.slices.spoil(() => true);
  else if (event.case !== app.facts.n) return null;
  if (event.strip) app.facts.strip = event.strip;
  if (event.type === "drawn") {
    app.slices.spoil((s) => s.plane !== event.plane || (event.who !== WHO && s.k === event.slice));
  }
  if (event.type === "filled" && event.plane) {
    app.slices.spoil((s) => s.plane !== event.plane || (s.k >= event.first && s.k <= event.last));
  }
  return editor.busy ? null : show();
}

function lost(reason, forGood) {
  const pill = $("saved");
  if (saver.unsaved) showSaved("failed", reason);
  else Object.assign(pill, { className: "pill bad", textContent: "Not connected", title: reason });
  if (forGood) message("Open the address that the program printed: it holds the key to this page.");
}

let first = true;
async function back() {
  if (first) { first = false; return; }
  if (!saver.unsaved) showSaved("saved");
  app.slices?.spoil(() => true);
  await loadCases();
  if (app.facts) await show();
  saver.run();
}

// --- the page -------------------------------------------------------------------------------------

function wire() {
  $("tools").replaceChildren(...Object.entries(TOOLS).map(([name, tool]) => {
    const button = make("button", "", { title: `${tool.title} (${tool.key.toUpperCase()})` });
    button.innerHTML = `<svg viewBox="0 0 20 20" aria-hidden="true">${tool.icon}</svg>`;
    button.append(make("span", tool.name), make("kbd", tool.key.toUpperCase()));
    button.dataset.tool = name;
    button.onclick = () => editor.setTool(name);
    return button;
  }));
  editor.setTool("brush");
  $("keys").replaceChildren(...KEYS.flatMap(([keys, text]) => {
    const term = document.createElement("dt");
    term.append(...keys.split(" ").map((key) => make("kbd", key)));
    return [term, make("dd", text)];
  }));
  const click = {
    fill, refine, next, help, finish: () => finish(false), undo: () => editor.undo(), redo: () => editor.redo(),
    copy: () => editor.copy(), accept: () => editor.accept(), empty: () => editor.nothing(),
    train: () => guarded(() => askJson("POST", "/api/train")), download,
  };
  for (const [id, action] of Object.entries(click)) $(id).addEventListener("click", action);
  views.slice(1).forEach((view) => wireSide(view));
  $("add-class").addEventListener("submit", async (event) => {
    event.preventDefault();
    const name = $("class-name").value.trim();
    if (!name || !(await guarded(() => askJson("POST", "/api/classes", { body: JSON.stringify({ name }) })))) return;
    $("class-name").value = "";
    await loadCases();
    choose(app.classes.length);
  });
  $("auto").addEventListener("change", () => { app.auto = $("auto").checked; });
  $("smooth").addEventListener("change", () => show());
  $("only").addEventListener("change", () => { app.only = $("only").value; });
  $("alpha").addEventListener("input", () => { app.alpha = $("alpha").value / 100; show(); });
  $("limit").addEventListener("change", () => editor.setLimit($("limit").checked));
  for (const id of ["low", "high"]) $(id).addEventListener("input", () => editor.readLimit());
  const typed = () => {
    const level = Number($("level").value), width = Number($("width").value);
    if (Number.isFinite(level) && width > 0) setWindow(level - width / 2, level + width / 2);
  };
  for (const id of ["level", "width"]) $(id).addEventListener("change", typed);
  window.addEventListener("beforeunload", (event) => { if (saver.unsaved) event.preventDefault(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => strip.draw());
}

function wireSide(view) {
  const { box } = view;
  box.querySelector(".swap").addEventListener("click", (event) => { event.stopPropagation(); setPlane(view.plane); });
  box.addEventListener("dblclick", () => setPlane(view.plane));
  const cross = (event) => { if (app.facts && event.target.tagName !== "BUTTON") app.setCross(view.plane, view.at(event)); };
  box.addEventListener("pointerdown", (event) => {
    if (event.target.tagName === "BUTTON") return;
    box.setPointerCapture(event.pointerId);
    cross(event);
  });
  box.addEventListener("pointermove", (event) => { if (event.buttons & 1) cross(event); });
  box.addEventListener("wheel", (event) => {
    event.preventDefault();
    const n = app.facts.planes[view.plane].slices, step = Math.sign(event.deltaY);
    app.index[view.plane] = Math.min(n - 1, Math.max(0, app.index[view.plane] + step));
    show();
  }, { passive: false });
}

async function download() {
  await guarded(async () => {
    const response = await ask("GET", `/api/cases/${app.facts.n}/segmentation`);
    const link = make("a", "", { href: URL.createObjectURL(await response.blob()), download: `${app.facts.name}.seg.nrrd` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

async function begin() {
  wire();
  try {
    await loadCases();
  } catch (error) {
    return lost(error.message, error.status === 403);
  }
  listen(heard, lost, back);
  const open = app.cases.find((row) => row.state === "drawn") || app.cases[0];
  if (open) await openCase(open.n);
  return null;
}

window.annotator = app; // for the curious, and for tests
begin();
