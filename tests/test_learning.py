"""Curves of label efficiency, on numbers that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from contextseg.cli import app
from contextseg.data import phantom
from contextseg.evaluation.learning_curve import labels_needed, learning_curve, needed_text
from contextseg.evaluation.statistics import describe
from contextseg.reports.curve import curve_chart
from contextseg.studies.compare import parse_grid
from contextseg.studies.curve import curve


@pytest.fixture
def table() -> pd.DataFrame:
    """Two methods, budgets 2, 10 and all (20), two seeds, two patients;

    "a" gains 0.1 a budget, "b" is flat.
    """
    rows = []
    for method, start, gain in (("a", 0.5, 0.1), ("b", 0.55, 0.0)):
        for i, budget in enumerate(("2", "10", "all")):
            for seed in (0, 1):
                for case, shift in (("x", -0.05), ("y", 0.05)):
                    dsc = start + gain * i + shift
                    rows.append(
                        {"method": method, "budget": budget, "seed": seed, "case": case, "dsc": dsc}
                    )
    return pd.DataFrame(rows).assign(status="both")


def curve_of(table: pd.DataFrame) -> pd.DataFrame:
    means = describe(
        table.assign(**{"class": "liver"}), by=("method", "budget"), metrics=["dsc"], resamples=200
    )
    return learning_curve(means, everything=20)


def test_curve_has_a_point_for_each_budget_in_order(table: pd.DataFrame) -> None:
    curve = curve_of(table)
    assert curve["labels"].tolist() == [2, 10, 20] * 2
    assert curve["mean"].tolist() == pytest.approx([0.5, 0.6, 0.7, 0.55, 0.55, 0.55])
    assert (curve["low"] <= curve["mean"]).all()
    assert (curve["mean"] <= curve["high"]).all()


def test_labels_needed_by_straight_lines(table: pd.DataFrame) -> None:
    curve = curve_of(table)
    assert labels_needed(curve, 0.55) == pytest.approx({"a": 6, "b": 2})
    assert labels_needed(curve, 0.65)["a"] == pytest.approx(15)
    assert isnan(labels_needed(curve, 0.65)["b"])
    fewer = curve.assign(mean=1 - curve["mean"])
    assert labels_needed(fewer, 0.45, higher=False) == pytest.approx({"a": 6, "b": 2})
    text = needed_text(curve, [0.55, 0.65])
    assert "| a | 6.0 | 15.0 |" in text
    assert "| b | 2.0 | not reached |" in text


def test_chart_is_drawn(table: pd.DataFrame) -> None:
    drawn = curve_chart(curve_of(table), "DSC")
    assert drawn.startswith(b"<?xml")
    assert drawn == curve_chart(curve_of(table), "DSC")


def test_the_curve_verb_runs_the_budgets_and_prints_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contextseg.pipeline.report", lambda *_: None)  # the pages of the runs
    data = phantom.write_dataset(tmp_path / "data", labelled=3, test=1)
    words = [
        "--methods",
        "plain=supervised",
        "--seeds",
        "0",
        "--budgets",
        "1,all",
        "--goal",
        "0.01",
    ]
    small = [
        "steps=2",
        "patch_vox=16,16,16",
        "base_width=4",
        "batch_size=2",
        "prediction.mirror=false",
    ]
    words += [word for setting in small for word in ("--set", setting)]
    done = CliRunner().invoke(
        app, ["curve", str(data), "-o", str(tmp_path / "out"), "--folds", "all", *words]
    )
    assert done.exit_code == 0, done.output
    assert "| plain | " in done.output
    drawn = pd.read_csv(tmp_path / "out" / "test-curve.csv")
    assert drawn[drawn["metric"] == "dsc"]["labels"].tolist() == [1, 3]
    assert "Label efficiency" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")

    methods = {"plain": "supervised"}
    grid = parse_grid(data, tmp_path / "out", methods, "0", "1,all", "all", settings=small)
    result = curve(grid, [0.01])
    assert str(result).strip() in done.output
    assert repr(result) == f"Curve({str(tmp_path / 'out')!r}, test)"
    assert result.tables["test"].equals(drawn)
    assert "| plain | 1.0 |" in result.needed["test"]
    one = curve(replace(grid, budgets=(None,)))
    assert (one.tables, one.needed, one.comparison.curves) == ({}, {}, {})
    assert str(one) == str(one.comparison)
