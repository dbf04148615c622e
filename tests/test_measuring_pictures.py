"""The pictures of docs/measuring.md: those that are shown exist, and their numbers are what the
library says.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from math import isnan
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

from contextseg.metrics import evaluate_case

DOCS = Path(__file__).parents[1] / "docs"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_measuring", DOCS / "draw_measuring.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()
PICTURES = SCRIPT.pictures()


def _notes(name: str) -> dict[str, str]:
    """The texts beneath a committed picture's panels, by their id, PANEL-COLUMN."""
    root = ElementTree.parse(DOCS / "measuring" / f"{name}.svg").getroot()
    groups = [
        g
        for g in root.iter("{http://www.w3.org/2000/svg}g")
        if re.fullmatch(r"\d-\w+", g.get("id", ""))
    ]
    return {g.attrib["id"]: "".join(g.itertext()).strip() for g in groups}


def test_the_page_shows_every_picture_and_no_other() -> None:
    page = (DOCS / "measuring.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(measuring/([^)]+)\.svg\)", page)
    assert sorted(shown) == sorted([*PICTURES, "calibration"])
    files = list((DOCS / "measuring").iterdir())
    assert {path.name for path in files} == {f"{name}.svg" for name in shown}
    assert max(path.stat().st_size for path in files) < 60_000


@pytest.mark.parametrize("name", PICTURES)
def test_numbers_in_a_picture_are_what_the_library_says(name: str) -> None:
    notes = _notes(name)
    expected: dict[str, float] = {}
    for k, panel in enumerate(PICTURES[name]):
        rule = {
            "tolerance_mm": panel.tolerance_mm,
            "convention": panel.convention,
            "near_mm": panel.near_mm,
        }
        (row,) = evaluate_case(
            panel.pred.astype(int),
            panel.ref.astype(int),
            panel.spacing_mm,
            {"x": [1]},
            lesions=True,
            **rule,
        )
        expected |= {f"{k}-{column}": row[column] for line in panel.shows for column in line}
    assert notes.keys() == expected.keys()
    for key, value in expected.items():
        numbers = re.findall(r"(?<![A-Z\d.])\d+(?:\.\d+)?", notes[key])  # not the 95 of HD95
        if isnan(value):
            assert notes[key].endswith("undefined")
        else:
            assert [float(number) for number in numbers] == [pytest.approx(value, abs=0.00501)], (
                notes[key]
            )


def test_calibration_by_hand() -> None:
    """The mean of |right / n - confidence|, each group by its voxels: of the second (1 + 2 + 3)
    / 30.
    """
    notes = _notes("calibration")
    for k, panel in enumerate(SCRIPT.reliabilities()):
        apart = sum(abs(right - n * p) for p, n, right in panel.groups)
        assert notes[f"{k}-ece"] == f"ECE {apart / sum(n for _, n, _ in panel.groups):.2f}"
    assert list(notes.values()) == ["ECE 0.00", "ECE 0.20", "ECE 0.02"]


def test_overlap_counts_by_hand() -> None:
    """6 x 6 voxels shifted by one along both axes: 5 x 5 in common."""
    notes = _notes("overlap")
    assert [notes[f"0-{column}"] for column in ("tp", "fp", "fn")] == ["TP 25", "FP 11", "FN 11"]
    assert [notes[f"0-{column}"] for column in ("dsc", "iou", "sen", "prc")] == [
        f"{label} {value:.2f}"
        for label, value in (("DSC", 50 / 72), ("IoU", 25 / 47), ("SEN", 25 / 36), ("PRC", 25 / 36))
    ]


def test_conventions_differ_for_the_reasons_given() -> None:
    """From voxels alone: the larger of two interpolated percentiles (monai), one percentile of
    both (medpy).
    """
    from scipy.ndimage import binary_erosion
    from scipy.spatial.distance import cdist

    panel = PICTURES["conventions"][0]
    apart = cdist(*(np.argwhere(mask & ~binary_erosion(mask)) for mask in (panel.pred, panel.ref)))
    there, back = apart.min(1), apart.min(0)
    larger = max(np.percentile(there, 95), np.percentile(back, 95))
    pooled = np.percentile(np.concatenate([there, back]), 95)
    notes = _notes("conventions")
    assert notes["1-hd95_mm"] == f"HD95 {larger:.2f} mm"
    assert notes["2-hd95_mm"] == f"HD95 {pooled:.2f} mm"
