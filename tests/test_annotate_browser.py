"""The annotator's page in a real browser, without a GPU."""

from __future__ import annotations

import io
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import contextseg as cs
from contextseg.annotator.drawing import NOBODY_SAID
from contextseg.annotator.jobs import Job
from contextseg.annotator.launch import Annotating, start_annotating
from contextseg.annotator.planes import SCREEN_PLANES, plane_axis
from contextseg.propagation import fill, labelled_slices
from contextseg.volume import AXIAL
from test_annotate_session import OBLIQUE, ORIENTATIONS, noise, scan_file, turned_affine

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def browser_path() -> str | None:
    named = os.environ.get("CONTEXTSEG_BROWSER")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


pytestmark = pytest.mark.skipif(
    browser_path() is None,
    reason="no Chromium or Chrome on the PATH (Debian: apt-get install chromium), and none named "
    "by CONTEXTSEG_BROWSER",
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(
            executable_path=browser_path(), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


class Tab:
    """A tab with the annotator."""

    def __init__(self, browser: Any, server: Annotating, **options: Any) -> None:
        self.server = server
        size = {"width": 1280, "height": 800}
        self.context = browser.new_context(**{"viewport": size, **options})
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(server.url)
        self.until("!!window.annotator?.view.slice?.drawn")

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert self.errors == []

    def get(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def until(self, expression: str | Callable[[], Any], seconds: float = 30) -> None:
        """Wait; the page's policy forbids playwright's own way, which evaluates text in it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.get(expression) if isinstance(expression, str) else expression():
                return
            time.sleep(0.02)
        raise AssertionError(f"never: {expression}")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def saved(self) -> None:
        saved = "annotator.saver.unsaved === 0 && !annotator.saver.busy"
        self.until(f"annotator.editor.pending === 0 && {saved}")

    def go(self, k: int, plane: str = "axial") -> None:
        while self.get("annotator.plane") != plane:
            self.press("v")
        self.press("Home")
        for _ in range(k // 10):
            self.press("PageUp")
        for _ in range(k % 10):
            self.press("ArrowUp")
        self.until(f"annotator.view.slice?.k === {k} && annotator.view.slice.plane === '{plane}'")
        self.settled()

    def settled(self) -> None:
        self.until("(({ slice }) => slice && !slice.stale && !slice.loading)(annotator.view)")

    def screen(self, x: float, y: float) -> tuple[float, float]:
        """Where on the page a place in the slice is, in pixels of the slice."""
        sx, sy, ox, oy = self.get("annotator.view.transform()")
        box = self.page.locator("#main-view").bounding_box()
        ratio = self.get("annotator.view.ratio")
        return box["x"] + (x * sx + ox) / ratio, box["y"] + (y * sy + oy) / ratio

    def drag(self, points: list[tuple[float, float]], **options: Any) -> None:
        mouse = self.page.mouse
        first, *rest = (self.screen(*point) for point in points)
        mouse.move(*first)
        mouse.down(**options)
        for point in rest:
            mouse.move(*point)
        mouse.up(**options)

    def lasso(self, centre: tuple[float, float], radius: float) -> None:
        self.press("l")
        x, y = centre
        turns = [2 * math.pi * i / 24 for i in range(25)]
        self.drag([(x + radius * math.cos(t), y + radius * math.sin(t)) for t in turns])
        self.saved()

    def drawn(self) -> np.ndarray:
        shape = self.get("annotator.view.slice.shape")
        return np.array(self.get("[...annotator.view.slice.drawn]"), np.uint8).reshape(shape)

    def marker(self) -> tuple[float, float]:
        """Where the one white voxel is on a screenshot of the view."""
        from PIL import Image
        from scipy.ndimage import binary_erosion

        view = self.page.locator("#main-view")
        grey = np.asarray(Image.open(io.BytesIO(view.screenshot())).convert("L"))
        rows, columns = np.nonzero(binary_erosion(grey > 250, np.ones((9, 9))))
        box = view.bounding_box()
        return box["x"] + columns.mean() + 0.5, box["y"] + rows.mean() + 0.5


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Annotating]]:
    running: list[Annotating] = []

    def start(folder: Path, work: str = "work", **options: Any) -> Annotating:
        running.append(start_annotating(folder, tmp_path / work, **options).start())
        return running[-1]

    yield start
    for server in running:
        server.stop()


def marked(folder: Path, name: str, orientation: str = AXIAL, seed: int = 0) -> Path:
    """A dark scan with one white voxel."""
    array = np.zeros((5, 6, 7), np.int16)
    rng = np.random.default_rng(seed)
    array[tuple(int(rng.integers(n)) for n in array.shape)] = 1000
    return scan_file(folder, name, array, orientation)


def click_markers(tab: Tab, server: Annotating, n: int) -> None:
    """Click the marker in each of the three planes, finish, and look for it in the files."""
    project = server.session.project
    scan = cs.read(project.case(n).images[0])
    [place] = np.argwhere(scan.oriented("SPL").array[0] == 1000)
    if tab.get("annotator.facts.n") != n:
        tab.page.get_by_role("button", name=f"{project.case(n).name}, new").click()
        tab.until(f"annotator.facts.n === {n} && !!annotator.view.slice?.drawn")
    tab.press("b")
    tab.get("document.getElementById('smooth').checked = false")
    tab.get("document.getElementById('size').value = 0")
    tab.page.locator("#size").dispatch_event("input")
    for plane in SCREEN_PLANES:
        tab.go(int(place[plane_axis(plane)]), plane)
        if tab.get("annotator.view.slice.drawn.includes(1)"):  # drawn in a plane that crosses
            tab.press("x")
            tab.saved()
        tab.press("Space")
        tab.page.mouse.click(*tab.marker())
        tab.saved()
        assert tab.drawn().sum() == 1
    drawing = server.session.drawing(n)
    assert np.argwhere(drawing.drawn == 1).tolist() == [place.tolist()]
    tab.press("Enter")
    tab.until(lambda: project.filled_file(project.case(n)).exists())
    image = nib.load(project.case(n).images[0])
    written = nib.load(project.filled_file(project.case(n)))
    assert np.array_equal(written.affine, image.affine)
    voxels = np.asarray(image.dataobj) == 1000
    assert np.array_equal(np.asarray(written.dataobj) == 1, voxels)


# --- what a person does ---------------------------------------------------------------------------


def test_a_click_is_that_voxel(
    chromium: Any, serve: Callable[..., Annotating], tmp_path: Path
) -> None:
    marked(tmp_path / "scans", "a", "LPS")
    server = serve(tmp_path / "scans")
    with Tab(chromium, server) as tab:
        click_markers(tab, server, 0)


def test_lassos_are_filled_undone_and_redone(
    chromium: Any, serve: Callable[..., Annotating], tmp_path: Path
) -> None:
    array = noise((20, 24, 26))
    path = scan_file(tmp_path / "scans", "a", array)
    server = serve(tmp_path / "scans", classes=["tumour", "organ"])
    drawing = server.session.drawing(0)
    with Tab(chromium, server) as tab:
        for k, radius in ((3, 3.0), (10, 7.0), (16, 4.0)):
            tab.go(k)
            tab.lasso((12, 12), radius)
        tab.until("annotator.facts.strip.filled.length === 14")
        drawn = drawing.drawn.copy()
        tab.press("f")
        tab.until("document.getElementById('live').textContent === 'filled'")
        assert np.array_equal(drawing.drawn, drawn)
        own = np.where(drawn == NOBODY_SAID, 0, drawn)
        scan = cs.read(path)
        theirs = fill(scan, labelled_slices(drawing.on_scan(own)))
        assert np.array_equal(drawing.on_scan(drawing.whole).array, theirs.label.array)

        tab.press("n")  # the longest stretch, in its middle
        tab.until("annotator.view.slice?.k === 6")
        tab.settled()
        seen = np.array(tab.get("[...annotator.view.slice.filled]")).reshape(24, 26)
        assert np.array_equal(seen, drawing.filled[6])
        tab.press("2", "b")
        tab.drag([(3, 3), (6, 3)])
        tab.saved()
        now = tab.drawn()  # the first touch took what was filled
        assert now[3, 4] == 2
        now[now == 2] = 0
        assert np.array_equal(now, seen)
        tab.page.keyboard.down("Control")
        tab.drag([(12, 12), (13, 12)])
        tab.page.keyboard.up("Control")
        tab.saved()
        assert tab.drawn()[12, 12] == 0

        for _ in range(2):
            tab.press("Control+z")
            tab.saved()
        assert (tab.drawn() == NOBODY_SAID).all()  # and not background
        assert (drawing.drawn[6] == NOBODY_SAID).all()
        tab.press("Control+z")  # the last one was drawn in slice 16
        tab.until("annotator.view.slice?.k === 16")
        tab.saved()
        assert (drawing.drawn[16] == NOBODY_SAID).all()
        for k, pixel in ((16, (12, 12)), (6, (3, 4))):
            tab.press("Control+y")
            tab.saved()
            assert tab.get("annotator.view.slice.k") == k
            assert drawing.drawn[k][pixel] == {16: 1, 6: 2}[k]


def test_two_tabs_never_lose_a_slice(
    chromium: Any, serve: Callable[..., Annotating], tmp_path: Path
) -> None:
    scan_file(tmp_path / "scans", "a", noise((8, 24, 26)))
    server = serve(tmp_path / "scans")
    drawing = server.session.drawing(0)
    with Tab(chromium, server) as one, Tab(chromium, server) as two:
        for tab in (one, two):
            tab.go(3)
        two.context.set_offline(True)  # it does not hear of what the other does
        one.lasso((8, 8), 4)
        two.press("l")
        two.drag([(14, 14), (20, 14), (20, 20), (14, 20)])
        two.until("document.getElementById('saved').textContent.startsWith('Not saved')")
        assert drawing.drawn[3][16, 16] == 0
        two.context.set_offline(False)
        two.until("document.getElementById('conflict').open")
        assert two.drawn()[16, 16] == 1  # still there
        assert drawing.drawn[3][16, 16] == 0
        two.page.get_by_role("button", name="Keep mine").click()
        two.saved()
        assert drawing.drawn[3][16, 16] == 1
        one.until("annotator.view.slice.drawn[16 * 26 + 16] === 1")  # and the first tab sees it
        one.go(4)
        one.lasso((8, 8), 3)
        two.go(5)
        two.lasso((8, 8), 3)
        assert drawing.touched("axial") == [3, 4, 5]


def test_what_cannot_be_saved_stays_in_the_tab_with_its_reason(
    chromium: Any, serve: Callable[..., Annotating], tmp_path: Path
) -> None:
    scan_file(tmp_path / "scans", "a", noise((8, 24, 26)))
    server = serve(tmp_path / "scans")
    work = server.session.project.work
    with Tab(chromium, server) as tab:
        (work / "drawn" / "a").rename(work / "elsewhere")
        (work / "drawn" / "a").touch()
        tab.press("b")
        tab.drag([(8, 8), (12, 8)])
        pill = tab.page.locator("#saved")
        tab.until(lambda: "a file stands where a folder is needed" in pill.inner_text())
        assert tab.get("annotator.saver.unsaved") == 1
        k = tab.get("annotator.view.slice.k")
        tab.go(1)
        tab.go(k)
        assert (tab.drawn() == 1).any()
        (work / "drawn" / "a").unlink()
        (work / "elsewhere").rename(work / "drawn" / "a")
        tab.saved()
        assert pill.inner_text() == "Saved"
        assert (server.session.drawing(0).drawn[k] == 1).any()


def test_a_keyboard_alone_is_enough(
    chromium: Any, serve: Callable[..., Annotating], tmp_path: Path
) -> None:
    for name in "ab":
        scan_file(tmp_path / "scans", name, noise((9, 24, 26)))
    server = serve(tmp_path / "scans")
    drawing = server.session.drawing(0)
    with Tab(chromium, server) as tab:
        seen = []
        for _ in range(60):
            tab.press("Tab")
            seen.append(tab.get("document.activeElement.id || document.activeElement.tagName"))
        assert {"main-view", "strip", "finish", "class-name", "train"} - set(seen) <= {"train"}
        assert seen.index("main-view") < seen.index("strip") < seen.index("class-name")
        tab.page.locator("#main-view").focus()
        tab.go(2)
        tab.press("Shift+ArrowRight", "Shift+ArrowDown", ".")
        tab.saved()
        assert drawing.drawn[2][13, 14] == 1
        tab.go(5)
        tab.press("c")
        tab.saved()
        assert np.array_equal(drawing.drawn[5], drawing.drawn[2])
        tab.go(7)
        tab.press("x")
        tab.saved()
        assert not drawing.drawn[7].any()
        tab.press("n")
        tab.until("[3, 4, 6].includes(annotator.view.slice?.k)")
        tab.press("a")
        tab.saved()
        assert len(drawing.touched("axial")) == 4
        said = tab.get("document.getElementById('strip').getAttribute('aria-valuetext')")
        assert said.startswith("axial slice")
        tab.press("Shift+Enter")
        tab.until("annotator.facts.n === 1")
        labels = cs.read_labels(server.session.project.work / "dataset/labelsTr/a.nii.gz")
        assert set(np.unique(labels.array)) == {0, 1}


def test_painting_keeps_to_its_limits(
    chromium: Any, serve: Callable[..., Annotating], tmp_path: Path
) -> None:
    """Grey values, one class alone, polygon and flood; the window by the right button."""
    array = np.zeros((5, 24, 26), np.int16)
    array[:, :, 13:] = 100
    scan_file(tmp_path / "scans", "a", array)
    server = serve(tmp_path / "scans", classes=["tumour", "organ"])
    with Tab(chromium, server) as tab:
        bright = np.frombuffer(server.session.grey(0, "axial", 2), "<u2").reshape(24, 26) > 50
        x = 18.5 if bright[0, 20] else 7.5
        tab.go(2)
        tab.page.mouse.move(*tab.screen(x, 12))
        tab.press("b", "t")
        tab.get("document.getElementById('size').value = 70")
        tab.page.locator("#size").dispatch_event("input")
        tab.drag([(13, 8), (13, 14)])
        tab.saved()
        assert (tab.drawn() == 1).any()
        assert not (tab.drawn() == 1)[~bright].any()
        tab.press("t", "2")
        tab.page.locator("#only").select_option("1")
        tab.page.locator("#main-view").focus()
        before = tab.drawn()
        tab.drag([(13, 12), (13, 20)])
        tab.saved()
        assert (tab.drawn() == 2).any()
        assert before[tab.drawn() == 2].min() > 0
        tab.page.locator("#only").select_option("any")
        tab.page.locator("#main-view").focus()
        tab.go(3)
        tab.press("p", "1")
        for corner in ((4, 4), (20, 4), (20, 20), (4, 20)):
            tab.page.mouse.click(*tab.screen(*corner))
        tab.press("Enter")
        tab.saved()
        assert (tab.drawn() == 1).sum() == 16 * 16
        tab.press("g", "2")
        tab.page.mouse.click(*tab.screen(10, 10))
        tab.saved()
        assert (tab.drawn() == 2).sum() == 16 * 16
        window = tab.get("annotator.windows[0]")
        tab.drag([(10, 10), (16, 14)], button="right")
        assert tab.get("annotator.windows[0]") != window
        assert (tab.drawn() == 2).sum() == 16 * 16
        zoom = tab.get("annotator.view.zoom")
        tab.page.keyboard.down("Control")
        tab.page.mouse.wheel(0, -200)
        tab.page.keyboard.up("Control")
        tab.until(f"annotator.view.zoom > {zoom}")
        tab.page.mouse.wheel(0, 40)
        tab.until("annotator.view.slice?.k !== 3")


def contrast(first: list[float], second: list[float]) -> float:
    """The ratio of WCAG 2 between two colours, 0 to 255."""

    def luminance(colour: list[float]) -> float:
        parts = [c / 255 for c in colour[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


COLOURS = """() => {
  const style = getComputedStyle(document.documentElement);
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (name) => {
    canvas.fillStyle = style.getPropertyValue(name);
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const names = ['--page', '--panel', '--raised', '--ink', '--soft', '--accent', '--on-accent',
    '--good', '--bad', '--bad-soft', '--mark'];
  return Object.fromEntries(names.map((name) => [name.slice(2), rgb(name)]));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_are_readable_and_every_control_has_a_name(
    chromium: Any, serve: Callable[..., Annotating], tmp_path: Path, scheme: str
) -> None:
    scan_file(tmp_path / "scans", "a", noise((5, 24, 26)))
    server = serve(tmp_path / "scans")
    with Tab(chromium, server, color_scheme=scheme) as tab:
        colours = tab.get(COLOURS)
        pairs = [("ink", "panel"), ("ink", "raised"), ("soft", "panel"), ("soft", "raised")]
        pairs += [("on-accent", "accent"), ("bad", "bad-soft"), ("mark", "panel")]
        for word, ground in pairs:
            assert contrast(colours[word], colours[ground]) >= 4.5, (word, ground)
        assert contrast(colours["accent"], colours["panel"]) >= 3  # the ring of the focus
        nameless = tab.get("""[...document.querySelectorAll('button, input, select, [tabindex]')]
          .filter((e) => !(e.innerText || e.title || e.ariaLabel || e.labels?.length))
          .map((e) => e.outerHTML)""")
        assert nameless == []
        wide = tab.get("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0


def test_without_the_key_the_page_says_what_to_do(
    chromium: Any, serve: Callable[..., Annotating], tmp_path: Path
) -> None:
    scan_file(tmp_path / "scans", "a", noise((5, 24, 26)))
    server = serve(tmp_path / "scans")
    page = chromium.new_page()
    page.goto(server.address)
    page.locator("#message").get_by_text("Open the address that the program").wait_for()
    page.close()
    with Tab(chromium, server) as tab:
        assert tab.page.url == server.address  # the key is not in the address any more
        tab.page.reload()
        tab.until("!!window.annotator?.view.slice?.drawn")


# --- all of it ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_click_is_that_voxel_in_every_orientation(
    chromium: Any, serve: Callable[..., Annotating], tmp_path: Path
) -> None:
    for i, orientation in enumerate(ORIENTATIONS):
        marked(tmp_path / "scans", orientation, orientation, seed=i)
    for i, angles in enumerate(OBLIQUE):
        path = marked(tmp_path / "scans", f"oblique{i}", seed=50 + i)
        image = nib.load(path)
        array = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(array, turned_affine(image.affine, angles)), path)
    server = serve(tmp_path / "scans")
    with Tab(chromium, server) as tab:
        for n in range(len(ORIENTATIONS) + len(OBLIQUE)):
            click_markers(tab, server, n)


@pytest.mark.slow
def test_a_job_shows_its_progress_and_drawing_goes_on(
    chromium: Any, serve: Callable[..., Annotating], tmp_path: Path
) -> None:
    scan_file(tmp_path / "scans", "a", noise((20, 64, 64)))
    server = serve(tmp_path / "scans")

    def work(job: Job) -> str:
        for i in range(10**6):
            job.progress(i, 10**6)
            np.linalg.svd(np.random.default_rng(0).random((60, 60)))
        return ""

    with Tab(chromium, server) as tab:
        job = server.session.jobs.start("train", None, work)
        tab.until("document.querySelector('#job progress').value > 0")
        tab.press("b")
        for k in range(5):
            tab.go(k)
            tab.drag([(10, 10 + k), (30, 20)])
            tab.saved()
        assert job.state == "running"
        tab.page.get_by_role("button", name="Cancel").click()
        tab.until("document.getElementById('job').hidden")
        assert job.state == "cancelled"


@pytest.mark.slow
@pytest.mark.parametrize("slices", [100, 600])
def test_large_scans_are_bearable(
    chromium: Any, monkeypatch: pytest.MonkeyPatch, slices: int
) -> None:
    """Memory is asserted; `benchmarks/annotate.py` writes the times down."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    found = import_module("annotate").measured(chromium, slices)
    assert found["heap"] < 100
    assert found["server"] < 1500
