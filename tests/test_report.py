"""The report says what the table says, stands alone, shows patients the right way up, and bears
what is missing.
"""

from __future__ import annotations

import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from contextseg.errors import ContextsegError
from contextseg.reports import summary_markdown, write_report
from contextseg.reports.numbers import extremes, ranked, tidy
from contextseg.volume import Volume, write

DEMO = Path(__file__).parents[1] / "src/contextseg/demo_data"
VOID = ("meta", "link", "img", "br", "input")
SVG_VOID = ("image", "path")


class Page(HTMLParser):
    """A page taken apart: its tags, texts and tables (rows of cell texts); every tag must be
    closed in its turn.
    """

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.tables, self.texts = [], [], [], []
        self.feed(Path(path).read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        assert tag in SVG_VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open or "script" in self.open:
            return
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data if "small" not in self.open else f" {data}"

    @property
    def text(self):
        return " ".join(self.texts)

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def row(case, name="tumour", dsc=0.8, status="both", **more):
    return {"case": case, "class": name, "dsc": dsc, "status": status, **more}


def report(folder, table=None, **more):
    """A report of nothing but what is given."""
    given = {
        "title": "A run",
        "cases": [],
        "logs": {},
        "stages": [],
        "provenance": {},
        "regions": {"tumour": (1,)},
    }
    path = folder / "report.html"
    write_report(path, table=pd.DataFrame() if table is None else table, **(given | more))
    return Page(path)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The four embedded test cases, "predicted" by moving the reference 1, 2, 3 and 4 voxels:

    worse and worse.
    """
    from contextseg.volume import read_labels

    folder = tmp_path_factory.mktemp("demo")
    rows, cases = [], []
    for move, path in enumerate(sorted((DEMO / "labelsTs").glob("*.nii.gz")), 1):
        name = path.name.removesuffix(".nii.gz")
        label = read_labels(path)
        moved = np.roll(label.array, move, 2)
        write(folder / path.name, label.with_array(moved.astype(np.uint8)))
        truth, found = label.array == 1, moved == 1
        rows.append(
            row(
                name,
                dsc=dice(truth, found),
                nsd=0.5 + move / 10,
                hd95_mm=2.0 * move,
                tolerance_mm=2.0,
            )
        )
        image = DEMO / "imagesTs" / f"{name}_0000.nii.gz"
        cases.append(
            {
                "case": name,
                "image": str(image),
                "reference": str(path),
                "prediction": str(folder / path.name),
            }
        )
    return pd.DataFrame(rows), cases


LOG = [
    {"step": 10, "part": "train", "seconds": 5.0, "lr": 0.01, "seg": 1.0, "context": 0.5},
    {"step": 20, "part": "train", "seconds": 9.0, "lr": 0.005, "seg": 0.8, "context": 0.4},
    {"step": 20, "part": "check", "seconds": 95.0, "seg": 0.9, "context": 0.5, "dice": 0.3},
]
FULL = {
    "logs": {"04-train": LOG},
    "stages": [
        {"name": "01-check", "seconds": 1.25, "peak_mb": 300},
        {"name": "04-train", "seconds": 95, "peak_mb": 2150},
    ],
    "provenance": {
        "versions": {"torch": "2.9"},
        "seed": 7,
        "data": {f"case {i}": f"hash-{i}" for i in range(30)},
    },
    "note": "Data: somebody.\n\nSecond paragraph.",
}


@pytest.fixture(scope="module")
def full(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    table, cases = demo
    return report(folder, table, cases=cases, **FULL), folder / "report.html"


# --- the page -------------------------------------------------------------------------------------


def test_page_is_whole_and_loads_nothing(full):
    page, path = full
    assert path.stat().st_size < 2_000_000
    loaded = page.attributes("src") + [
        a["href"] for tag, a in page.tags if "href" in a and tag != "a"
    ]
    assert len(loaded) == 12 + 4 + 3  # planes, curves, box plots
    assert all(address.startswith("data:image/") for address in loaded)
    assert all(
        address.startswith("#") for address in (a["href"] for tag, a in page.tags if tag == "a")
    )
    assert "url(" not in path.read_text(encoding="utf-8")
    assert "@import" not in path.read_text(encoding="utf-8")
    policy = next(
        a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert (
        "meta",
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    ) in page.tags


def test_ids_are_unique_and_links_lead_somewhere(full):
    ids = full[0].attributes("id")
    assert len(ids) == len(set(ids))
    links = [a["href"].removeprefix("#") for tag, a in full[0].tags if tag == "a"]
    assert len(links) >= 8 + 4
    assert set(links) <= set(ids)


def test_sections_come_in_order(full):
    headings = [
        "Results",
        "Cases",
        "Pictures",
        "Training",
        "Spread over cases",
        "Calibration",
        "Time and memory",
    ]
    names = [a["id"] for tag, a in full[0].tags if tag == "section"]
    assert names == [
        h.lower().replace(" ", "-") for h in [*headings, "Data and notes", "Provenance"]
    ]


def test_every_fact_is_there(full, demo):
    text = full[0].text
    for name in demo[0]["case"]:
        assert name in text
    for fact in (
        "1.2 s",
        "1 min 35 s",
        "300 MB",
        "2.1 GB",
        "20 steps",
        "hash-29",
        "torch",
        "Second paragraph.",
    ):
        assert fact in text, fact


def test_numbers_are_the_means_of_the_table(full, demo):
    table = demo[0]
    classes, cases, _ = full[0].tables
    assert classes[0] == ["Class", "Scored", "Dice", "NSD", "HD95, mm"]
    expected = [
        f"{table[c].mean():.{n}f} ± {table[c].std():.{n}f} median {table[c].median():.{n}f}"
        for c, n in (("dsc", 3), ("nsd", 3), ("hd95_mm", 1))
    ]
    assert classes[1] == ["tumour", "4", *expected]
    worst_first = table.sort_values("dsc")
    assert [cells[0] for cells in cases[1:]] == list(worst_first["case"])
    assert [cells[1] for cells in cases[1:]] == [f"{d:.3f}" for d in worst_first["dsc"]]
    assert f"{table['dsc'].mean():.3f}" in full[0].texts  # the headline


def test_several_classes_have_a_line_for_all(tmp_path):
    table = pd.DataFrame(
        [
            row("a", "liver", 0.9),
            row("a", "spleen", 0.7),
            row("b", "liver", 0.5),
            row("b", "spleen", None, "absent"),
        ]
    )
    classes, cases = report(tmp_path, table).tables
    assert classes[1:] == [
        ["liver", "2", "0.700 ± 0.283 median 0.700"],
        ["spleen", "1 1 absent", "0.700 median 0.700"],
        ["All classes", "2 1 absent", "0.650 ± 0.212 median 0.650"],  # of (0.9 + 0.7) / 2 and 0.5
    ]
    assert [cells[:4] for cells in cases[1:]] == [
        ["b", "liver", "0.500", "found"],
        ["b", "spleen", "–", "correctly absent"],
        ["a", "spleen", "0.700", "found"],
        ["a", "liver", "0.900", "found"],
    ]


def test_classes_have_their_colours_in_the_tables(tmp_path):
    rows = [row("a", "liver"), row("a", "vein"), row("b", "liver"), row("b", "vein")]
    page = report(tmp_path, pd.DataFrame(rows), colours={"liver": (1, 0, 0.2), "bone": (0, 0, 1)})
    squares = [a["style"] for tag, a in page.tags if tag == "i" and a.get("class") == "swatch"]
    assert squares == ["background:#ff0033"] * 3  # one of the class, one of each case
    assert page.tables[0][1][0] == "liver"


def test_a_missed_organ_counts_and_an_absent_one_does_not(tmp_path):
    table = pd.DataFrame(
        [
            row("a", dsc=0.9),
            row("b", dsc=None, status="missed"),
            row("c", dsc=None, status="absent"),
        ]
    )
    page = report(tmp_path, table)
    assert page.tables[0][1] == [
        "tumour",
        "2 1 missed 1 absent",
        "0.450 ± 0.636 median 0.450",
    ]  # of 0.9 and 0
    assert page.tables[1][1][:3] == ["b", "0.000", "missed"]
    assert page.tables[1][3][:3] == ["c", "–", "correctly absent"]
    assert "0 spurious, 1 correctly absent" in page.texts


def test_a_mean_over_fewer_cases_says_so(tmp_path):
    table = pd.DataFrame([row("a", hd95_mm=2.0), row("b", hd95_mm=4.0), row("c", hd95_mm=None)])
    assert report(tmp_path, table).tables[0][1][3] == "3.0 ± 1.4 median 3.0 n = 2"


def test_false_positives_near_and_far_are_counted_where_the_table_does(tmp_path, demo):
    cases = demo[1][:1]
    name = cases[0]["case"]
    counted = report(tmp_path, pd.DataFrame([row(name, fp_near=12, fp_far=345)]), cases=cases)
    assert [cell.strip() for cell in counted.tables[1][0][-2:]] == ["FP near", "FP far"]
    assert counted.tables[1][1][-2:] == ["12", "345"]
    assert "false-positive voxels: 12 near, 345 far" in counted.text
    without = report(tmp_path, pd.DataFrame([row(name)]), cases=cases)
    assert "FP near" not in without.text
    assert "false-positive voxels" not in without.text


def test_tolerances_that_differ_are_named(tmp_path):
    table = pd.DataFrame(
        [row("a", "liver", nsd=0.9, tolerance_mm=5.0), row("a", "aorta", nsd=0.8, tolerance_mm=2.0)]
    )
    classes = report(tmp_path, table).tables[0]
    assert [cells[3] for cells in classes[1:3]] == [
        "0.900 median 0.900 at 5 mm",
        "0.800 median 0.800 at 2 mm",
    ]


def test_text_is_escaped(tmp_path, demo):
    bad = "<script>alert(1)</script>&\"'"
    case = {**demo[1][0], "case": bad}
    page = report(
        tmp_path,
        pd.DataFrame([row(bad, bad), row(bad, "b")]),
        title=bad,
        cases=[case],
        logs={bad: LOG},
        stages=[{"name": bad, "seconds": 1, "peak_mb": 1, "note": bad}],
        provenance={bad: bad},
        regions={bad: (1,), "b": (2,)},
        note=bad,
    )
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # ours
    assert page.text.count(bad) >= 10


def test_equal_input_gives_equal_bytes(full, demo, tmp_path):
    table, cases = demo
    report(tmp_path, table, cases=cases, **FULL)
    assert (tmp_path / "report.html").read_bytes() == full[1].read_bytes()


def test_report_does_not_load_torch():
    code = (
        "import contextseg.reports, sys; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ContextsegError, match="file stands where a folder"):
        report(tmp_path / "file")


# --- what is missing ------------------------------------------------------------------------------


def test_nothing_at_all(tmp_path):
    page = report(tmp_path, provenance={})
    for sentence in (
        "No case could",
        "no images",
        "No training",
        "no scores",
        "No case has",
        "No stage",
        "No provenance",
    ):
        assert sentence in page.text, sentence
    assert not page.tables


def test_all_absent(tmp_path, demo):
    names = [case["case"] for case in demo[1]]
    page = report(
        tmp_path,
        pd.DataFrame([row(name, dsc=None, status="absent") for name in names]),
        cases=demo[1],
    )
    assert "4 cases: no class is in any reference or prediction" in page.text
    assert [cells[2] for cells in page.tables[0][1:]] == ["correctly absent"] * 4
    assert "no score" in page.text


def test_one_case(tmp_path, demo):
    page = report(tmp_path, demo[0].iloc[:1], cases=demo[1][:1])
    assert (
        page.tables[0][1][2] == f"{demo[0]['dsc'][0]:.3f} median {demo[0]['dsc'][0]:.3f}"
    )  # no ± of one case
    assert sum(tag == "image" for tag, _ in page.tags) == 3
    assert "worst" not in page.text.replace("Worst cases first", "")


def test_cases_without_a_score_are_named_and_shown(tmp_path, demo):
    cases = [{key: case[key] for key in ("case", "image", "prediction")} for case in demo[1]]
    page = report(tmp_path, cases=cases)
    assert f"Without a score: {', '.join(case['case'] for case in cases)}." in page.text
    assert sum(tag == "image" for tag, _ in page.tags) == 9  # the first three
    kinds = [a.get("class") for tag, a in page.tags if tag == "path"]
    assert "prediction" in kinds
    assert not {"reference", "false", "missed"} & set(kinds)


def broken(case, tmp_path):
    (tmp_path / "cut.nii.gz").write_bytes(Path(case["prediction"]).read_bytes()[:500])
    return {**case, "prediction": str(tmp_path / "cut.nii.gz")}


def other_grid(case, tmp_path):
    write(tmp_path / "small.nii.gz", Volume(np.zeros((3, 3, 3), np.uint8), np.eye(4)))
    return {**case, "prediction": str(tmp_path / "small.nii.gz")}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (broken, "truncated or damaged"),
        (other_grid, "its grid differs from the image's"),
        (lambda case, _: {**case, "image": str(case["image"]) + "x"}, "the file does not exist"),
        (lambda case, _: {"case": case["case"]}, "no image is given"),
    ],
)
def test_a_case_that_cannot_be_drawn_says_why(tmp_path, demo, spoil, sentence):
    table, cases = demo
    page = report(tmp_path, table, cases=[spoil(cases[0], tmp_path), *cases[1:]])
    assert "No picture of this case." in page.text
    assert sentence in page.text
    assert sum(tag == "image" for tag, _ in page.tags) == 9  # the other three


@pytest.mark.parametrize(
    "rows", [[], [{"step": 1, "part": "train"}], [{"step": 1, "part": "train", "seg": math.nan}]]
)
def test_logs_without_a_curve(tmp_path, rows):
    assert "No training was logged." in report(tmp_path, logs={"04-train": rows}).text


def test_a_stage_without_numbers(tmp_path):
    page = report(
        tmp_path,
        stages=[{"name": "01-check"}, {"name": "02-plan", "seconds": 4.0, "peak_gpu_mb": 100}],
    )
    assert page.tables[0] == [
        ["Stage", "Time", "Peak memory", "Peak GPU memory"],
        ["01-check", "–", "–", "–"],
        ["02-plan", "4.0 s", "–", "100 MB"],
    ]


# --- which cases, which classes -------------------------------------------------------------------


def test_best_median_and_worst():
    table = tidy(
        pd.DataFrame([row("a", dsc=0.9), row("b", dsc=0.1), row("c", dsc=0.5), row("d", dsc=0.7)])
    )
    order = ranked(table)
    assert list(order.index) == ["b", "c", "d", "a"]
    assert extremes(order) == {"worst": "b", "median": "c", "best": "a"}
    assert extremes(order[:2]) == {"worst": "b", "best": "c"}
    assert extremes(order[:1]) == {"worst": "b"}
    assert extremes(order[:0]) == {}


def test_of_many_cases_three_are_shown(tmp_path, demo):
    table = pd.DataFrame([row(f"case {i}", dsc=i / 10) for i in range(9)])
    page = report(tmp_path, table, cases=[{**demo[1][0], "case": f"case {i}"} for i in range(9)])
    assert [a["id"] for tag, a in page.tags if tag == "figure" and "id" in a] == [
        "case-1",
        "case-2",
        "case-3",
    ]
    headings = [text for text in page.texts if " · " in text]
    assert headings == ["case 0 · worst", "case 4 · median", "case 8 · best"]
    assert len(page.tables[1]) == 10


def test_a_class_that_was_not_annotated_is_not_drawn(tmp_path, demo):
    table = pd.DataFrame([row(case["case"], "node", dsc=0.0, status="missed") for case in demo[1]])
    page = report(tmp_path, table, cases=demo[1], regions={"tumour": (1,), "node": (2,)})
    assert {a.get("class") for tag, a in page.tags if tag == "path"} == {"ruler"}


def test_markdown():
    table = pd.DataFrame(
        [
            row("a", "left|kidney", 0.9, nsd=0.8),
            row("b", "left|kidney", None, "missed", nsd=None),
            row("a", "liver", 0.6, nsd=0.5),
        ]
    )
    assert summary_markdown(table).splitlines() == [
        "| Class | Cases | Missed | Dice | Median | NSD |",
        "|---|--:|--:|--:|--:|--:|",
        "| left\\|kidney | 2 | 1 | 0.450 ± 0.636 | 0.450 | 0.400 ± 0.566 |",
        "| liver | 1 | 0 | 0.600 | 0.600 | 0.500 |",
        # of case a, (0.9 + 0.6) / 2 = 0.75 and (0.8 + 0.5) / 2 = 0.65, and of case b, 0
        "| All classes | 2 | 1 | 0.375 ± 0.530 | 0.375 | 0.325 ± 0.460 |",
    ]
    assert summary_markdown(pd.DataFrame()) == "No case could be scored."
