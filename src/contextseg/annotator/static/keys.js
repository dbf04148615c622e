// The keys of the editor.

import { TOOLS } from "./tools.js";

/** What a key that is pressed anywhere on the page does. */
export function pressed(editor, event) {
  const { target } = event;
  const typing = target.matches("input:not([type=range]):not([type=checkbox]), select, textarea");
  if (!editor.app.facts || typing || document.querySelector("dialog[open]")) return;
  editor.tick();
  if (event.ctrlKey || event.metaKey) {
    const key = event.key.toLowerCase();
    const redo = key === "y" || (key === "z" && event.shiftKey);
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    if (redo) editor.redo();
    else editor.undo();
    return;
  }
  if (event.altKey) return;
  const onButton = target.matches("button, input") && (event.key === "Enter" || event.key === " ");
  if (onButton) return;
  if (target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
  if (press(editor, event)) event.preventDefault();
}

/** Do what a key asks for; whether it asks for something. */
function press(editor, event) {
  const { app } = editor, { actions } = editor.page;
  const k = app.index[app.plane], lower = event.key.toLowerCase();
  if (event.shiftKey && event.key.startsWith("Arrow")) return moveCross(editor, event.key);
  const tool = Object.entries(TOOLS).find(([, facts]) => facts.key === lower);
  if (tool) return editor.setTool(tool[0]) ?? true;
  if (/^[1-9]$/.test(event.key)) return app.choose(Number(event.key)) ?? true;
  const planes = ["axial", "coronal", "sagittal"];
  const table = {
    "[": () => editor.setSize(editor.size - 4), "]": () => editor.setSize(editor.size + 4),
    arrowup: () => editor.page.go(k + 1), arrowdown: () => editor.page.go(k - 1),
    arrowright: () => editor.page.go(k + 1), arrowleft: () => editor.page.go(k - 1),
    pageup: () => editor.page.go(k + 10), pagedown: () => editor.page.go(k - 10),
    home: () => editor.page.go(0), end: () => editor.page.go(Infinity),
    n: actions.next, f: actions.fill, r: actions.refine, "?": actions.help,
    a: () => editor.accept(), x: () => editor.nothing(), c: () => editor.copy(), ".": () => editor.dab(),
    t: () => editor.setLimit(!app.limit),
    v: () => editor.page.plane(planes[(planes.indexOf(app.plane) + 1) % 3]),
    m: () => app.setChannel(app.channel + 1),
    0: () => { app.view.fit(); app.view.draw(); editor.drawTop(); },
    "+": () => { app.view.zoomBy(1.25); editor.drawTop(); }, "=": () => { app.view.zoomBy(1.25); editor.drawTop(); },
    "-": () => { app.view.zoomBy(0.8); editor.drawTop(); },
    " ": () => editor.hide(true), escape: () => editor.cancel(),
    backspace: () => { editor.points?.pop(); editor.drawTop(); },
    enter: () => { if (!editor.closePolygon() && !event.repeat) actions.finish(event.shiftKey); },
  };
  if (!table[lower]) return false;
  table[lower]();
  return true;
}

function moveCross(editor, key) {
  const { app } = editor, [x, y] = app.crossOf(app.plane);
  const step = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[key];
  if (!step) return false;
  editor.keyed = true;
  app.setCross(app.plane, [x + step[0], y + step[1]]);
  return true;
}
