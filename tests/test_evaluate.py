"""Two folders of label maps through the command line:

tolerances by class, calibration where there are confidences.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from contextseg.cli import app
from contextseg.disk import write_json
from contextseg.errors import ContextsegError
from contextseg.evaluation.evaluate import (
    compare_conventions,
    evaluate,
    pairs,
    parse_tolerances,
    save_table,
)
from contextseg.metrics import METRICS, Metric
from contextseg.reports import write_report
from contextseg.volume import Volume, write

CLASSES = ("liver", "aorta", "inferior vena cava")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1.0),
        (" 2.5 ", 2.5),
        ("0", 0.0),
        ("2,liver=5", {"liver": 5.0, "aorta": 2.0, "inferior vena cava": 2.0}),
        (
            "liver=5, aorta = 2 ,inferior vena cava=3",
            {"liver": 5.0, "aorta": 2.0, "inferior vena cava": 3.0},
        ),
    ],
)
def test_tolerances(text: str, expected: object) -> None:
    assert parse_tolerances(text, CLASSES) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lver=5,2", "did you mean liver"),
        ("liver=5", "no tolerance for aorta, inferior vena cava"),
        ("liver=much,2", "liver=much"),
        ("-1", "no distance"),
        ("nan", "no distance"),
        ("liver=inf,2", "no distance"),
        ("1,2", "two numbers"),
        ("liver=5,liver=4,2", "liver twice"),
        ("", "no distance"),
    ],
)
def test_what_is_no_tolerance_is_one_message(text: str, why: str) -> None:
    with pytest.raises(ContextsegError, match=why):
        parse_tolerances(text, CLASSES)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two organs of 4 x 10 x 10 voxels of 1 mm; both are predicted 3 mm off, and nobody is very
    sure.
    """
    truth = np.zeros((12, 30, 40), np.uint8)
    truth[4:8, 10:20, 5:15], truth[4:8, 10:20, 22:32] = 1, 2
    made = np.roll(truth, 3, 0)
    for folder, array in (
        ("made", made),
        ("truth", truth),
        ("made/confidence", np.full_like(made, 204)),
    ):
        write(tmp_path / folder / "x.nii.gz", Volume(array, np.eye(4)))
    write(tmp_path / "images" / "x.nii.gz", Volume(truth[None].astype(np.float32), np.eye(4)))
    write_json(tmp_path / "dataset.json", {"labels": {"background": 0, "liver": 1, "aorta": 2}})
    return tmp_path / "made", tmp_path / "truth"


def test_each_class_is_measured_at_its_own_tolerance(folders: tuple[Path, Path]) -> None:
    found, regions = pairs(*folders), {"liver": [1], "aorta": [2]}
    table, _ = evaluate(found, regions, tolerance_mm={"liver": 3.0, "aorta": 1.0})
    liver, aorta = table.set_index("class")["nsd"][["liver", "aorta"]]
    assert table.set_index("class")["tolerance_mm"].to_dict() == {"liver": 3.0, "aorta": 1.0}
    assert liver == 1.0  # moved by 3 mm
    assert aorta < 0.9
    wide, _ = compare_conventions(found, regions, tolerance_mm={"liver": 3.0, "aorta": 1.0})
    assert wide.set_index(["class", "metric"])["default"][("liver", "nsd")] == 1.0


def test_the_command_line(folders: tuple[Path, Path], tmp_path: Path) -> None:
    words = [
        "evaluate",
        *map(str, folders),
        "--labels",
        str(tmp_path / "dataset.json"),
        "-o",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, [*words, "--tolerance-mm", "aorta=1,3"])
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "out" / "metrics.csv").set_index("class")
    assert table["tolerance_mm"].to_dict() == {"liver": 3.0, "aorta": 1.0}
    sure = pd.read_csv(tmp_path / "out" / "calibration.csv")
    (row,) = sure[(sure["voxels"] == "all") & (sure["n"] > 0)].to_dict("records")
    wrong = 2 * 2 * 3 * 10 * 10  # organs, sides, slices of each
    assert (row["n"], row["confidence"], row["accuracy"]) == (
        12 * 30 * 40,
        0.8,
        pytest.approx(1 - wrong / 14400),
    )
    assert isinstance(
        CliRunner().invoke(app, [*words, "--tolerance-mm", "aorta=1"]).exception, ContextsegError
    )


def test_a_confidence_map_that_does_not_fit_is_a_failure_with_its_name(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    write(folders[0] / "confidence" / "x.nii.gz", Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4)))
    done = CliRunner().invoke(app, ["evaluate", *map(str, folders), "-o", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "write 0 to 255" in done.output
    assert (tmp_path / "out" / "metrics.csv").exists()


def test_a_new_metric_is_in_the_table(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 of 4 slices in common, of 100 voxels each: in metrics.csv, and on the page of a run."""
    toy = Metric("toy", "Toy score", 0, "voxels", function=lambda pred, ref, mm: (pred & ref).sum())
    monkeypatch.setitem(METRICS, "toy", toy)
    table, problems = evaluate(pairs(*folders), {"liver": [1], "aorta": [2]})
    assert not problems
    save_table(table, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "metrics.csv")["toy"].tolist() == [100, 100]
    page = tmp_path / "report.html"
    write_report(
        page, title="", table=table, cases=[], logs={}, stages=[], provenance={}, regions={}
    )
    assert page.read_text(encoding="utf-8").count("Toy score, voxels") == 2
