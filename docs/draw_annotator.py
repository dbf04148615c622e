"""Pictures of the annotator for the guide and the README, from a real browser.

    python docs/draw_annotator.py                 the embedded scans: docs/annotator/*.png, the GIF
    python docs/draw_annotator.py ../shared/data  also a CT that is 512 pixels wide

The outlines are those of the experts, drawn with the mouse on some slices of a sarcoma.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import contour_generator
from PIL import Image
from playwright.sync_api import sync_playwright

import contextseg as cs
from contextseg.annotator.launch import Annotating, start_annotating
from contextseg.annotator.planes import screen_slice
from contextseg.pipeline import DEMO_DATA
from contextseg.resampling import resample

OUT = Path(__file__).parent / "annotator"
CASE = "sarcoma_032"
CT_CLASSES = {"spleen": 1, "right kidney": 2, "liver": 5, "aorta": 7}


class Person:
    """Somebody who draws what the experts drew."""

    def __init__(self, page: Any, truth: np.ndarray) -> None:
        self.page = page
        self.truth = truth
        self.frames: list[tuple[Image.Image, int]] = []

    def wait(self, expression: str) -> None:
        """Wait until something holds in the page."""
        end = time.monotonic() + 60
        while not self.page.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(expression)
            time.sleep(0.03)

    def settle(self) -> None:
        """Wait until everything is saved and shown."""
        self.wait("annotator.saver.unsaved === 0 && !annotator.saver.busy")
        time.sleep(0.25)
        self.wait("(({ slice }) => slice && !slice.stale && !slice.loading)(annotator.view)")

    def film(self, milliseconds: int) -> None:
        """Keep a picture of the page for the film."""
        content = self.page.screenshot()
        self.frames.append((Image.open(io.BytesIO(content)).convert("RGB"), milliseconds))

    def go(self, k: int, film: int = 0) -> None:
        """Go to a slice by the arrow keys."""
        now = self.page.evaluate("annotator.index[annotator.plane]")
        for _ in range(abs(k - now)):
            self.page.keyboard.press("ArrowUp" if k > now else "ArrowDown")
            if film:
                self.settle()
                self.film(film)
        self.settle()

    def outline(self, k: int, value: int, film: bool = False) -> None:
        """Draw with the lasso along the outline of one class."""
        mask = screen_slice(self.truth, "axial", k) == value
        lines = contour_generator(z=np.pad(mask.astype(float), 1)).lines(0.5)
        sx, sy, ox, oy = self.page.evaluate("annotator.view.transform()")
        box = self.page.locator("#main-view").bounding_box()
        self.page.keyboard.press("l")
        for line in sorted(lines, key=len)[-2:]:
            points = [
                (box["x"] + (x - 0.5) * sx + ox, box["y"] + (y - 0.5) * sy + oy) for x, y in line
            ]
            self.page.mouse.move(*points[0])
            self.page.mouse.down()
            for i, point in enumerate(points[1:]):
                self.page.mouse.move(*point)
                if film and i % max(1, len(points) // 7) == 0:
                    self.film(110)
            self.page.mouse.up()
        self.settle()


def start(browser: Any, server: Annotating, width: int, height: int, scheme: str) -> Any:
    """Open the page."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(server.url)
    return page


def sarcoma(browser: Any, work: Path) -> None:
    """The embedded scan, half drawn and filled, and the short film."""
    server = start_annotating(DEMO_DATA, work).start()
    [n] = [i for i, c in enumerate(server.session.project.cases) if c.name == CASE]
    truth = cs.read_labels(server.session.project.case(n).label).oriented("SPL").array
    there = np.flatnonzero(truth.any((1, 2)))
    page = start(browser, server, 1280, 800, "dark")
    person = Person(page, truth)
    person.wait("!!window.annotator?.view.slice?.drawn")
    page.get_by_role("button", name=CASE).click()
    person.wait(f"annotator.facts.n === {n} && !!annotator.view.slice?.drawn")
    middle = int(there[np.argmax(truth[there].sum((1, 2)))])
    person.go(middle)
    person.film(1400)
    person.outline(middle, 1, film=True)
    person.film(900)
    for k in (int(there[0]) + 1, int(there[-1]) - 1):
        person.go(k)
        person.film(500)
        person.outline(k, 1)
        person.film(900)
    page.keyboard.press("n")
    person.settle()
    person.film(1600)
    k = page.evaluate("annotator.index.axial")
    person.go(min(k + 6, int(there[-1]) - 1), film=160)
    person.film(1200)
    page.keyboard.press("n")
    person.settle()
    page.mouse.move(640, 420)
    page.keyboard.press("b")
    for width, height in ((1280, 800), (1920, 1080)):
        for scheme in ("light", "dark"):
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(color_scheme=scheme)
            person.settle()
            time.sleep(0.5)
            save(page, f"{width}-{scheme}")
    save_film(person.frames)
    server.stop()


def ct(browser: Any, data: Path, work: Path) -> None:
    """A CT, 512 pixels wide: the public abdomen at 3 mm, resampled."""
    scan = cs.read(next((data / "torso").glob("*ct*.nii.gz"))).oriented("SPL")
    labels = cs.read_labels(next((data / "torso").glob("*seg_v1*.nii.gz"))).oriented("SPL")
    shape = (scan.shape[0], round(scan.shape[1] * 512 / scan.shape[2]), 512)
    finer = np.diag([1.0, *(old / new for old, new in zip(scan.shape[1:], shape[1:])), 1.0])
    image = resample(scan.array, shape).astype(np.int16)
    rows, columns = (np.arange(new) * old // new for old, new in zip(scan.shape[1:], shape[1:]))
    truth = labels.array[:, rows][:, :, columns]
    (work / "scans").mkdir(parents=True)
    cs.write(work / "scans" / "abdomen.nii.gz", cs.Volume(image, scan.affine @ finer))
    server = start_annotating(work / "scans", work / "work", classes=list(CT_CLASSES)).start()
    page = start(browser, server, 1280, 800, "dark")
    person = Person(page, truth)
    person.wait("!!window.annotator?.view.slice?.drawn")
    there = np.flatnonzero((truth == CT_CLASSES["liver"]).sum((1, 2)) > 200)
    for k in (int(there[len(there) // 3]), int(there[2 * len(there) // 3])):
        person.go(k)
        for i, value in enumerate(CT_CLASSES.values(), 1):
            if (truth[k] == value).sum() > 50:
                page.keyboard.press(str(i))
                person.outline(k, value)
    page.keyboard.press("n")
    person.settle()
    page.keyboard.press("b")
    time.sleep(0.5)
    save(page, "ct-dark")
    server.stop()


def save(page: Any, name: str) -> None:
    """Write a picture of the page."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.save(OUT / f"{name}.png", optimize=True)


def grey_and_bright(image: Image.Image) -> Image.Image:
    """A palette of true greys, and of the colours in a picture."""
    pixels = np.asarray(image).reshape(-1, 3)
    bright = pixels[np.ptp(pixels.astype(int), axis=1) > 12]
    colours = Image.fromarray(bright[None]).quantize(150, method=Image.Quantize.MAXCOVERAGE)
    greys = [level for level in np.linspace(0, 255, 100).astype(int).tolist() for _ in range(3)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(colours.getpalette() or [])[:450], *greys])
    return palette


def save_film(frames: list[tuple[Image.Image, int]]) -> None:
    """Write the film."""
    small = [frame.resize((800, 500), Image.Resampling.LANCZOS) for frame, _ in frames]
    palette = grey_and_bright(small[-1])
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in small]
    durations = [milliseconds for _, milliseconds in frames]
    options: dict[str, Any] = {"duration": durations, "loop": 0, "optimize": True}
    flat[0].save(OUT / "annotate.gif", save_all=True, append_images=flat[1:], **options)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))))
    with sync_playwright() as tools, tempfile.TemporaryDirectory() as folder:
        chromium = tools.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        sarcoma(chromium, Path(folder) / "sarcoma")
        if len(sys.argv) > 1:
            ct(chromium, Path(sys.argv[1]), Path(folder) / "ct")
        chromium.close()
