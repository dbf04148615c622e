"""The annotator's page in a real browser on CTs of 512 x 512 voxels, beside its targets.

A server in a process of its own, headless Chromium without a GPU, and a person who lassoes three
axial slices, has the rest filled by shapes, and draws with a brush. The targets are those that the
page was specified with. Wall time, so on an idle machine; without a browser or playwright there are
no rows.

    python benchmarks/annotate.py [--quick]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from math import cos, pi, sin
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from contextseg.volume import AXIAL, as_volume

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZE = 512
PEER = "the specification's target"
CLAIMS = {
    "open": "page opened, first slice shown, s",
    "move": "brush, one move of the mouse (95th percentile), s",
    "slice": "another slice, from the server, s",
    "frame": "slice drawn on the screen, s",
    "put": "drawn slice kept on the disk, s",
    "fill": "fill by shapes and back, s",
    "heap": "heap of the tab, MB",
    "server": "memory of the server, MB",
}
TARGETS = {
    100: {"open": 3, "fill": 1.0},
    600: {"open": 12, "fill": 1.5, "put": 0.02, "server": 1500},
}
ALWAYS = {"move": 0.016, "slice": 0.05, "frame": 0.016, "heap": 100}
"""Targets at any number of slices."""

SERVE = """
import sys
from pathlib import Path
from contextseg.annotator.launch import start_annotating
server = start_annotating(Path(sys.argv[1]), Path(sys.argv[2]))
print(server.url, flush=True)
server.serve()
"""

TIMED = "async () => { const t = performance.now(); %s; return (performance.now() - t) / 1000; }"

FILL = TIMED % (
    "document.getElementById('fill').click();"
    "while (document.getElementById('live').textContent !== 'filled')"
    " await new Promise((r) => setTimeout(r, 5))"
)

SLICE = TIMED % (
    "const s = annotator.slices.get('axial', annotator.index.axial - 31);"
    "await annotator.slices.load(s, 0)"
)

MOVES = """() => {
  const view = annotator.view, box = view.box.getBoundingClientRect(), all = [];
  const send = (type, x, y, buttons) => view.box.dispatchEvent(new PointerEvent(type,
    { clientX: box.left + x, clientY: box.top + y, button: 0, buttons, pointerId: 1,
      bubbles: true }));
  view.box.setPointerCapture = view.box.releasePointerCapture = () => {};
  view.box.hasPointerCapture = () => false;
  send('pointerdown', 200, 200, 1);
  for (let i = 0; i < 100; i++) {
    const t = performance.now();
    send('pointermove', 200 + i, 200 + i / 2, 1);
    all.push(performance.now() - t);
  }
  send('pointerup', 300, 250, 0);
  return all.sort((a, b) => a - b)[95] / 1000;
}"""

FRAME = """() => {
  const { view, classes, alpha } = annotator, t = performance.now();
  const { drawn, filled } = view.slice, colours = classes.map((c) => c.colour);
  for (let i = 0; i < 20; i++) {
    view.setLabels(drawn, filled, colours, alpha);
    view.draw();
  }
  view.base.getContext('2d').getImageData(0, 0, 1, 1);
  return (performance.now() - t) / 20000;
}"""

SAVED = "annotator.editor.pending === 0 && annotator.saver.unsaved === 0 && !annotator.saver.busy"


def rows(quick: bool) -> Iterator[tuple[str, str, float, float, str]]:
    """(claim, input, seconds or MB, the target, "the specification's target")."""
    path = browser_path()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        print("annotate: left out (no Chromium, or no playwright)", file=sys.stderr)
        return
    for slices in (100,) if quick else (100, 600):
        with sync_playwright() as tools:
            browser = tools.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--disable-gpu"]
            )
            found = measured(browser, slices, 128 if quick else SIZE)
            browser.close()
        given = f"CT {SIZE} x {SIZE} x {slices}, Chromium without a GPU, two cores, wall time"
        for name, target in {**TARGETS[slices], **ALWAYS}.items():
            yield CLAIMS[name], given, found[name], float(target), PEER


def browser_path() -> str | None:
    """Chromium or Chrome: what CONTEXTSEG_BROWSER names, else the first on the PATH."""
    named = os.environ.get("CONTEXTSEG_BROWSER")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


def measured(browser: Any, slices: int, size: int = SIZE) -> dict[str, float]:
    """Open a scan of noise in the page, draw, fill and draw again.

    Args:
        browser: Playwright's.
        slices: Axial slices of the scan.
        size: Rows and columns of a slice.

    Returns:
        Seconds and megabytes, by the names of `CLAIMS`.
    """
    with tempfile.TemporaryDirectory() as folder:
        scans, work = Path(folder) / "scans", Path(folder) / "work"
        scans.mkdir()
        tile = np.random.default_rng(0).integers(-1000, 1000, (4, size, size)).astype(np.int16)
        array = np.tile(tile, (slices // 4, 1, 1))
        as_volume(array, (2.0, 0.8, 0.8), AXIAL).save(scans / "a.nii.gz")
        del array
        environment = os.environ | {"OMP_NUM_THREADS": "2"}
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(scans), str(work)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            assert process.stdout is not None
            found = _in_the_page(browser, process.stdout.readline().strip(), slices, size)
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
            return found | {"server": int(line.split()[1]) / 1e3}
        finally:
            process.terminate()
            process.wait(timeout=30)


def _in_the_page(browser: Any, url: str, slices: int, size: int) -> dict[str, float]:
    """What a person does, timed in the page itself."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    puts: list[Any] = []
    page.on("requestfinished", lambda r: puts.append(r) if r.method == "PUT" else None)
    found = {}
    started = time.monotonic()
    page.goto(url)
    _until(page, "!!window.annotator?.view.slice?.drawn")
    found["open"] = time.monotonic() - started
    for k in (10, slices // 2, slices - 10):
        _go(page, k)
        _lasso(page, size / 2, size / 6)
    _until(page, f"annotator.facts.strip.filled.length === {slices - 19}")
    found["fill"] = page.evaluate(FILL)
    found["slice"] = page.evaluate(SLICE)
    page.keyboard.press("b")
    found["move"] = page.evaluate(MOVES)
    _until(page, SAVED)
    found["frame"] = page.evaluate(FRAME)
    for _ in range(20):  # slice after slice, a stroke on each
        page.keyboard.press("ArrowUp")
        _until(
            page, "annotator.view.slice?.k === annotator.index.axial && annotator.view.slice.drawn"
        )
        page.evaluate(MOVES)
        _until(page, SAVED)
    answered = [r.timing["responseStart"] - r.timing["requestStart"] for r in puts]
    found["put"] = median(answered) / 1000
    session = context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    heap = session.send("Runtime.getHeapUsage")
    found["heap"] = (heap["usedSize"] + heap.get("backingStorageSize", 0)) / 1e6
    context.close()
    return found


def _until(page: Any, expression: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        if time.monotonic() > end:
            raise TimeoutError(f"never: {expression}")
        time.sleep(0.02)


def _go(page: Any, k: int) -> None:
    page.keyboard.press("Home")
    for key in ["PageUp"] * (k // 10) + ["ArrowUp"] * (k % 10):
        page.keyboard.press(key)
    _until(page, f"annotator.view.slice?.k === {k}")
    _until(page, "(({ slice }) => slice && !slice.stale && !slice.loading)(annotator.view)")


def _lasso(page: Any, centre: float, radius: float) -> None:
    page.keyboard.press("l")
    sx, sy, ox, oy = page.evaluate("annotator.view.transform()")
    box = page.locator("#main-view").bounding_box()
    ratio = page.evaluate("annotator.view.ratio")
    turns = [2 * pi * i / 24 for i in range(25)]
    points = [(centre + radius * cos(t), centre + radius * sin(t)) for t in turns]
    screen = [
        (box["x"] + (x * sx + ox) / ratio, box["y"] + (y * sy + oy) / ratio) for x, y in points
    ]
    page.mouse.move(*screen[0])
    page.mouse.down()
    for point in screen[1:]:
        page.mouse.move(*point)
    page.mouse.up()
    _until(page, SAVED)


if __name__ == "__main__":
    for row in rows("--quick" in sys.argv):
        print(json.dumps(row))
