"""The page of a comparison says what its statistics say, draws what was tested, and bears what is
missing.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from contextseg.evaluation.tables import results
from contextseg.metrics import METRICS, Metric
from contextseg.reports import charts, comparison, write_comparison
from contextseg.reports.comparison import named_rows
from contextseg.reports.numbers import tidy
from contextseg.reports.worst import hardest, shown, worst_html
from contextseg.volume import Volume, write


def row(
    method,
    case,
    klass="liver",
    dsc=0.8,
    status="both",
    *,
    patient=None,
    seed=0,
    budget="all",
    split="test",
):
    distance = {"both": 10 * (1 - dsc), "absent": math.nan}.get(status, 100.0)
    names = {
        "run": f"{method}-{budget}-{seed}",
        "method": method,
        "budget": budget,
        "seed": seed,
        "fold": "all",
    }
    names |= {
        "split": split,
        "source": "contextseg",
        "case": case,
        "patient": patient or case,
        "class": klass,
    }
    return {**names, "status": status, "dsc": dsc, "nsd": dsc, "hd95_mm": distance}


def several(methods=("plain", "wide", "deep"), classes=("liver", "spleen"), split="test", **more):
    """Two seeds, four cases of three patients; in c the spleen is absent, and `wide` makes it up
    once.
    """
    rng = np.random.default_rng(0)
    rows = []
    for method in methods:
        for seed in (0, 1):
            for case, patient in zip("abcd", "PPQR"):
                for klass in classes:
                    dsc, status = float(rng.uniform(0.5, 0.9)), "both"
                    if (case, klass) == ("c", "spleen"):
                        dsc, status = (
                            (0.0, "spurious")
                            if (method, seed) == ("wide", 1)
                            else (math.nan, "absent")
                        )
                    if (method, seed, case, klass) == ("plain", 0, "d", "liver"):
                        dsc, status = 0.0, "missed"
                    rows.append(
                        row(
                            method,
                            case,
                            klass,
                            dsc,
                            status,
                            patient=patient,
                            seed=seed,
                            split=split,
                            **more,
                        )
                    )
    return pd.DataFrame(rows)


def compared(table, metrics=("dsc", "nsd", "hd95_mm")):
    return results(table, data="d", split="test", resamples=50, metrics=metrics)


def page(folder, table, title="Compared", **more):
    splits = {name: compared(part) for name, part in table.groupby("split")} if len(table) else {}
    given = {"compared": splits, "provenance": {"python": "3.11"}, **more}
    write_comparison(folder / "report.html", title=title, table=table, **given)
    return (folder / "report.html").read_text(encoding="utf-8")


def tables(text):
    """Rows of cell texts of every table, small print after a blank."""
    found = []
    for body in re.findall(r"<table.*?</table>", text, re.S):
        lines = re.findall(r"<tr.*?</tr>", body, re.S)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.S) for line in lines]
        found.append([[re.sub(r"<[^>]+>", " ", cell).strip() for cell in line] for line in cells])
    return found


def test_means_and_tests_are_those_of_the_statistics(tmp_path):
    """Dice 0.8 and 0.6, then 0.7 and 0.5 by the other: 0.7 - 0.6; of two patients no p is below
    0.5.
    """
    rows = [
        row("plain", "a", dsc=0.8),
        row("plain", "b", dsc=0.6),
        row("wide", "a", dsc=0.7),
        row("wide", "b", dsc=0.5),
    ]
    means, tests, _ = tables(page(tmp_path, pd.DataFrame(rows)))
    assert means[0] == ["Method", "Dice ↑", "NSD ↑", "HD95, mm ↓", "Missed", "Spurious", "Absent"]
    assert [line[0] for line in means[1:]] == ["plain", "wide"]
    assert re.fullmatch(r"0\.700\s+\[0\.600, 0\.800\]\s+n = 2", means[1][1])
    assert means[1][4:] == ["0/2", "0", "0"]
    assert tests[1][:3] == ["plain − wide", "Dice", "2"]
    assert re.fullmatch(r"0\.100\s+\[0\.100, 0\.100\]", tests[1][3])
    assert tests[1][4:] == ["1.00", "0.500", "1.000"]
    assert re.match(r"-1\.0\s", tests[3][3])  # HD95 is 10 x (1 - Dice): less is better
    assert tests[3][4] == "1.00"


def test_splits_classes_and_budgets(tmp_path):
    frames = [
        several(split=split, budget=budget)
        for split in ("validation", "test")
        for budget in ("20", "5", "all")
    ]
    text = page(tmp_path, pd.concat(frames, ignore_index=True))
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Test split",
        "Validation cases",
        "Worst cases",
        "Provenance",
    ]
    means = tables(text)[0]
    assert means[0][:3] == ["Class", "Method", "Labels"]
    assert [line[0] for line in means[1:]] == ["All classes"] * 9 + ["liver"] * 9 + ["spleen"] * 9
    assert [line[2] for line in means[1:10]] == ["5"] * 3 + ["20"] * 3 + ["all"] * 3
    assert (
        text.count('alt="All classes: Dice') == 2 * 2
    )  # a box plot and the differences, on each split


@pytest.fixture
def drawn(monkeypatch):
    """What the page draws: heading -> points and means of each pair, or values of each row."""
    pairs, boxes = {}, {}

    def paired_chart(differences, means, heading, metric):
        pairs[heading] = (differences, means, metric)
        return b"<svg/>"

    def box_chart(values, failed, heading, metric):
        boxes[heading] = (values, failed)
        return b"<svg/>"

    monkeypatch.setattr(comparison, "paired_chart", paired_chart)
    monkeypatch.setattr(comparison, "box_chart", box_chart)
    return SimpleNamespace(pairs=pairs, boxes=boxes)


def with_counts(table):
    """The table with sensitivity and precision, which differ from Dice, as `evaluate_case` says."""
    sen = table["dsc"].where(table["status"] != "spurious") * 0.9
    prc = table["dsc"] ** 2
    return table.assign(sen=sen, prc=prc, rvd=table["dsc"] - 0.7)


ALL = ("dsc", "nsd", "hd95_mm", "sen", "prc", "rvd")


@pytest.mark.parametrize("budgets", [("all",), ("5", "20")])
def test_the_points_are_what_was_tested(tmp_path, drawn, budgets):
    """Their mean and number are those of the test, for every metric and class, misses included."""
    table = pd.concat([with_counts(several(budget=b)) for b in budgets], ignore_index=True)
    found = compared(table, ALL)
    page(tmp_path, table, compared={"test": found})
    assert set(found.pairs["class"]) == {"overall", "liver", "spleen"}
    assert set(found.pairs["metric"]) == set(ALL)
    for line in found.pairs.to_dict("records"):
        title = "All classes" if line["class"] == "overall" else line["class"]
        points, means, metric = drawn.pairs[f"{title}: {METRICS[line['metric']].title}"]
        budget = f" · {line['budget']}" if len(budgets) > 1 else ""
        name = f"{line['a']} − {line['b']}{budget}"
        assert metric.name == line["metric"]
        assert len(points[name]) == line["n"]
        assert points[name].mean() == pytest.approx(line["difference"], abs=1e-12)
        assert means[name] == pytest.approx((line["difference"], line["low"], line["high"]))


def test_precision_of_a_right_absence_by_hand(tmp_path, drawn):
    """On b, `wide` makes up what `plain` rightly leaves out: 1 - 0; on a 0.6 - 0.9. Mean 0.35.

    Sensitivity does not exist on b, so a alone counts: 0.5 - 0.8.
    """
    rows = [row("plain", "a"), row("plain", "b", dsc=math.nan, status="absent")]
    rows += [row("wide", "a"), row("wide", "b", dsc=0.0, status="spurious")]
    table = pd.DataFrame(rows).assign(
        prc=[0.6, math.nan, 0.9, 0.0], sen=[0.5, math.nan, 0.8, math.nan]
    )
    page(tmp_path, table, compared={"test": compared(table, ("sen", "prc"))})
    points = {heading: pair[0]["plain − wide"] for heading, pair in drawn.pairs.items()}
    assert points["liver: Precision"] == pytest.approx([-0.3, 1.0])
    assert points["liver: Sensitivity"] == pytest.approx([-0.3])


def test_the_axis_says_on_which_side_the_first_is_better():
    right, left = "first is better →", "← first is better"
    sides = {name: charts.better_side(metric) for name, metric in METRICS.items()}
    assert {name for name, side in sides.items() if side == right} == {
        "dsc",
        "iou",
        "nsd",
        "sen",
        "prc",
    }
    assert all(side in (left, right) for side in sides.values())


def test_the_boxes_are_what_was_averaged(tmp_path, drawn):
    """The mean of the points of a row is its mean in the table; a failed run makes a cross."""
    table = with_counts(several())
    found = compared(table, ALL)
    page(tmp_path, table, compared={"test": found})
    for class_name in found.classes:
        title = "All classes" if class_name == "overall" else class_name
        for line in found.rows(class_name):
            for name, mean in line["metrics"].items():
                values, failed = drawn.boxes[f"{title}: {METRICS[name].title}"]
                points = values[line["key"][0]]
                assert len(points) == mean["n"]
                if class_name == "liver":  # of every run and case: a mean of means is the mean
                    assert points.mean() == pytest.approx(mean["mean"])
    values, failed = drawn.boxes["liver: Dice"]
    assert failed["plain"].tolist() == [False, False, False, True]
    assert failed["deep"].tolist() == [False] * 4
    assert drawn.boxes["All classes: Dice"][1]["wide"].tolist() == [False, False, True, False]


def test_every_metric_asked_for_is_on_the_page(tmp_path):
    """In the table, the tests and the charts, with the catalogue's heading and direction."""
    table = with_counts(several())
    names = ("prc", "rvd", "dsc")
    text = page(tmp_path, table, compared={"test": compared(table, names)})
    means, tests, *_ = tables(text)
    assert means[0][2:5] == ["Precision ↑", "Rel. volume diff.", "Dice ↑"]
    assert {line[2] for line in tests[1:]} == {"Precision", "Rel. volume diff.", "Dice"}
    for heading in ("Precision", "Rel. volume diff.", "Dice"):
        assert f'alt="liver: {heading} of each case, by method"' in text
        assert f'alt="liver: {heading}, difference in each patient"' in text


def test_a_new_metric_is_on_the_page(tmp_path, monkeypatch):
    toy = Metric("toy", "Toy score", 2, "mm", "lower", best=0.0)
    monkeypatch.setitem(METRICS, "toy", toy)
    table = several().assign(toy=lambda rows: 3 * rows["dsc"])
    text = page(tmp_path, table, compared={"test": compared(table, ("toy",))})
    assert tables(text)[0][0][2] == "Toy score, mm ↓"
    assert 'alt="liver: Toy score, mm, difference in each patient"' in text


def test_a_point_is_a_patient(tmp_path, drawn):
    """P has two cases: (0.9 + 0.7) / 2 - (0.5 + 0.5) / 2; nothing can be said of R, whom only
    one has.
    """
    rows = [
        row("a", "x", dsc=0.9, patient="P"),
        row("a", "y", dsc=0.7, patient="P"),
        row("a", "z", dsc=0.4),
    ]
    rows += [row("b", name, dsc=0.5, patient="P") for name in "xy"] + [
        row("b", "z", dsc=0.6),
        row("b", "R", dsc=1.0),
    ]
    page(tmp_path, pd.DataFrame(rows))
    points = drawn.pairs["liver: Dice"][0]["a − b"]
    assert points == pytest.approx([0.3, -0.2])


def test_worst_cases_come_first_with_their_failures(tmp_path):
    rows = [
        row(m, c, dsc=d) for m, c, d in (("p", "easy", 0.9), ("q", "easy", 0.7), ("p", "hard", 0.3))
    ]
    rows += [row("q", "hard", dsc=0.0, status="missed"), row("q", "hard", dsc=0.2, seed=1)]
    worst = tables(page(tmp_path, pd.DataFrame(rows)))[-1]
    assert worst[0] == ["Case", "Class", "Dice, mean", "p", "q"]
    assert [re.sub(r"\s+", " ", cell) for cell in worst[1]] == [
        "hard",
        "liver",
        "0.200",
        "0.300",
        "0.100 1 missed",
    ]
    assert worst[2][2:] == ["0.800", "0.900", "0.700"]


def named(table):
    return named_rows(tidy(table), ["method"])


def test_hardest_is_by_the_mean_over_methods_of_their_means_over_runs():
    """p: seeds 0.2 and 0.4 of a, 0.6 of b; q: 0.9 of a, 0.3 of b, which has a second class with
    0.7, and an absent one.

    a: (0.3 + 0.9) / 2 = 0.6, b: (0.6 + 0.5) / 2 = 0.55; over all rows a would come first (0.5
    against 0.53)."""
    rows = [row("p", "a", dsc=0.2), row("p", "a", dsc=0.4, seed=1), row("p", "b", dsc=0.6)]
    rows += [row("q", "a", dsc=0.9), row("q", "b", dsc=0.3), row("q", "b", "spleen", dsc=0.7)]
    rows += [
        row("q", "b", "node", dsc=math.nan, status="absent"),
        row("p", "c", dsc=math.nan, status="absent"),
    ]
    order = hardest(named(pd.DataFrame(rows)))
    assert list(order) == ["b", "a"]
    assert order == pytest.approx({"b": 0.55, "a": 0.6})


def test_of_several_runs_the_median_is_shown():
    rows = [row("p", "a", dsc=dsc, seed=seed) for seed, dsc in enumerate((0.9, 0.1, 0.5, math.nan))]
    rows = [
        {**r, "prediction_file": f"{r['run']}.nii.gz", "fp_near": 3.0, "fp_far": math.nan}
        for r in rows
    ]
    rows += [{**r, "class": "spleen", "fp_near": 4.0} for r in rows] + [
        row("q", "a", dsc=0.4),
        row("q", "other"),
    ]
    p, q = shown(named(pd.DataFrame(rows)), "a")
    assert (p.row, p.run, p.runs, p.dsc, p.near, p.file) == (
        "p",
        "p-all-2",
        4,
        0.5,
        7.0,
        "p-all-2.nii.gz",
    )
    assert p.mean == pytest.approx(0.5)
    assert math.isnan(p.far)
    assert (q.row, q.run, q.runs, q.dsc, q.file) == ("q", "q-all-0", 1, 0.4, "")


def files(folder, *cases):
    """Cases of 20 x 30 x 40 voxels with an organ; the prediction by p is right, that by q has
    stray voxels.
    """
    affine = np.array([[0.0, 0, 1, 0], [0, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    grey = np.random.default_rng(0).uniform(0, 9, (1, 20, 30, 40)).astype(np.float32)
    truth = np.zeros((20, 30, 40), np.uint8)
    truth[8:12, 12:18, 4:10] = 1
    stray = truth.copy()
    stray[8:12, 12:18, 10:26] = 1  # 10 mm of which are near
    made = []
    for name in cases:
        paths = {kind: folder / f"{name}-{kind}.nii.gz" for kind in ("image", "truth", "p", "q")}
        for path, array in zip(paths.values(), (grey, truth, truth, stray)):
            write(path, Volume(array, affine))
        made.append(
            {"case": name, "image": [str(paths["image"])], "reference": str(paths["truth"])}
        )
    return made


def test_worst_cases_are_seen_side_by_side(tmp_path):
    """The Dice of p is that of its case here, and q's half of it."""
    scores = {"0": 0.9, "1": 0.2, "2": 0.6, "3": 0.4}
    rows = [row(m, c, dsc=d / part) for c, d in scores.items() for m, part in (("p", 1), ("q", 2))]
    rows = [
        {**r, "prediction_file": str(tmp_path / f"{r['case']}-{r['method']}.nii.gz")} for r in rows
    ]
    given = pd.DataFrame(rows), {"cases": files(tmp_path, *scores), "regions": {"liver": (1,)}}
    text = page(tmp_path, given[0], **given[1])
    section = text[
        text.index('<section id="worst-cases">') : text.index('<section id="provenance">')
    ]
    assert re.findall(r"<h3>(.*?)</h3>", section) == ["1", "3", "2"]
    assert "The 3 cases of 4 with the lowest mean Dice" in section
    assert "mean Dice 0.150" in section  # of 0.2 and 0.1
    captions = re.findall(r"<figcaption>(\w)<small>(.*?)</small>", section)
    assert captions[:2] == [("p", "Dice 0.200"), ("q", "Dice 0.100")]
    planes = re.findall(r"<svg.*?</svg>", section, re.S)
    assert len(planes) == 3 * 2 * 3
    assert sum("data:image/png" in plane for plane in planes) == 3 * 3  # once for the two methods
    greys = re.findall(r'<image id="([^"]+)"', section)
    assert len(set(greys)) == 9
    assert re.findall(r'<use href="#([^"]+)"', section) == greys
    right, wrong = planes[:3], planes[3:6]
    assert not any('class="false"' in plane or 'class="far"' in plane for plane in right)
    assert 'class="false"' in wrong[0]
    assert 'class="far"' in wrong[0]
    assert 'id="marks"' in section
    rows = named(given[0])
    assert worst_html(rows, "Test split", **given[1]) == worst_html(rows, "Test split", **given[1])


def test_pictures_that_cannot_be_drawn_say_why(tmp_path):
    rows = [row(m, "a", dsc=0.5) for m in ("gone", "p", "paper")]
    rows[0]["prediction_file"], rows[1]["prediction_file"] = (
        str(tmp_path / "gone.nii.gz"),
        str(tmp_path / "a-p.nii.gz"),
    )
    cases, rows = files(tmp_path, "a"), named(pd.DataFrame(rows))
    text = worst_html(rows, "Test split", cases, {"liver": (1,)})
    assert re.search(
        r"<figcaption>gone<small>.*?</figcaption><p>No picture\..*does not exist", text
    )
    assert "<p>No prediction to show: its scores were taken as they are.</p>" in text
    assert text.count("<svg viewBox") == 3
    cases[0]["image"] = [str(tmp_path / "no.nii.gz")]
    assert "No picture of this case." in worst_html(rows, "Test split", cases, {"liver": (1,)})
    assert "There are no images to show." in worst_html(rows, "Test split", (), {})


def test_page_stands_alone_and_escapes(tmp_path):
    text = page(tmp_path, several(methods=("<b>x", 'y"$\\no$')), title="<i>T", note="one\n\n<two>")
    assert "default-src 'none'" in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert not re.search(r"<(link|iframe|object|i>|b>x)", text)
    assert "<p>one</p><p>&lt;two&gt;</p>" in text
    assert "&lt;b&gt;x − y&quot;$\\no$" in text


def test_equal_input_gives_equal_bytes(tmp_path):
    assert page(tmp_path, several()) == page(tmp_path, several())


def test_many_charts_are_folded_up(tmp_path):
    classes = tuple(f"organ{i}" for i in range(4))  # and all classes: 5 x 3 charts of each kind
    text = page(tmp_path, several(("a", "b"), classes))
    assert text.count("<summary>3 more</summary>") == 2
    assert text.count("data:image/svg+xml") == 30


def test_an_endless_distance_is_not_drawn(tmp_path):
    table = pd.DataFrame([row(m, c, dsc=0.5 + i / 10) for m in "pq" for i, c in enumerate("abc")])
    table.loc[0, "hd95_mm"] = math.inf
    found = compared(table).differences
    assert (found["metric"] == "hd95_mm").sum() == 2
    assert page(tmp_path, table).count("HD95, mm of each case") == 1


def test_one_method_alone(tmp_path):
    text = page(tmp_path, pd.DataFrame([row("plain", "a"), row("plain", "b", dsc=0.6)]))
    assert "there is nothing to test" in text
    assert "Paired differences" not in text
    assert len(tables(text)) == 2


def test_nothing_was_found_or_compared(tmp_path):
    absent = [row(name, "a", dsc=math.nan, status="absent") for name in "pq"]
    text = page(tmp_path, pd.DataFrame(absent))
    assert "No case has a score." in text
    assert "<img" not in text
    assert "Nothing was compared." in page(tmp_path, pd.DataFrame())


def test_marked_methods_bear_a_dagger(tmp_path):
    table = several()
    text = page(
        tmp_path, table, compared={"test": replace(compared(table), marked=frozenset({"wide"}))}
    )
    assert [line[1] for line in tables(text)[0][1:4]] == ["plain", "wide†", "deep"]


def test_a_comparison_leaves_its_page(tmp_path):
    from contextseg.studies.compare.grid import Grid
    from contextseg.studies.compare.written import write_comparison_tables

    grid = Grid("data", tmp_path, ("plain", "wide"))
    (tmp_path / "comparison.json").write_text(
        json.dumps({"provenance": {"python": "3.11.7"}}), encoding="utf-8"
    )
    data = SimpleNamespace(name="organs", test=(), train=(), ignore=None, region_values=dict)
    made = write_comparison_tables(grid, data, [several(("plain", "wide"))])  # type: ignore[arg-type]
    assert made.report == tmp_path / "report.html"
    text = made.report.read_text(encoding="utf-8")
    assert "<h1>organs: 2 methods compared</h1>" in text
    assert "3.11.7" in text
    assert "organs, test split: mean over 4 cases of 3 patients" in text
