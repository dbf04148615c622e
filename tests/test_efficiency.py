"""What a prediction costs: areas by hand, the thread's end, and a row a case."""

from __future__ import annotations

import csv
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from contextseg.data.layouts import Case
from contextseg.errors import ContextsegError
from contextseg.evaluation import efficiency
from contextseg.evaluation.efficiency import Efficiency, SampledCurve, area, sampled
from contextseg.predictor import Predictor, Segmentation
from contextseg.volume import Volume


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "efficiency.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def sampling() -> bool:
    return any(thread.name == "profile" for thread in threading.enumerate())


def test_areas_by_hand() -> None:
    times, values = [0.0, 0.1, 0.3, 1.3], [0.0, 100.0, 50.0, 50.0]
    assert area(times, values) == pytest.approx(0.1 * 50 + 0.2 * 75 + 1.0 * 50)
    assert area(times, values) == pytest.approx(trapezoid(values, times))
    assert area(times, values, "official") == pytest.approx(0.1 * 200)
    assert area([], []) == area([], [], "official") == area([5.0], [3.0]) == 0
    even = [0.1 * i for i in range(101)]
    level = area(even, [7.0] * 101)
    assert level == pytest.approx(70)
    assert area(even, [7.0] * 101, "official") == pytest.approx(
        level + 0.7
    )  # one sample more than there are intervals


def test_a_row_by_hand() -> None:
    curve = SampledCurve(
        [0.0, 2.0, 3.0], [1048.0, 3048.0, 2048.0], [0.0, 50.0, 100.0], peak_mb=321.0
    )
    row = curve.row("trapezoid")
    assert row["seconds"] == 3
    assert row["gpu_auc_mb_s"] == 2 * 2048 + 2548
    assert row["gpu_auc_above_2gb_mb_s"] == 2 * 500 + 500  # 0, 1000 and 0 MB above 2048
    assert row["cpu_auc_percent_s"] == 50 + 75
    assert (row["peak_gpu_mb"], row["peak_mb"]) == (3048, 321)
    assert curve.row("official")["cpu_auc_percent_s"] == pytest.approx(15)


def test_samples_of_a_clock_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four seconds in which two of processor time are used, on two cores: a quarter of the
    machine.
    """
    clock = SimpleNamespace(wall=10.0, used=2.0)
    fake = SimpleNamespace(perf_counter=lambda: clock.wall, process_time=lambda: clock.used)
    monkeypatch.setattr(efficiency, "time", fake)
    monkeypatch.setattr(efficiency, "INTERVAL_S", 1e5)
    monkeypatch.setattr(efficiency.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 4 * 2**30))
    curve = SampledCurve()
    with sampled(curve):
        clock.wall, clock.used = 14.0, 4.0
    assert curve.at_s == [0, 4]
    assert curve.cpu_percent == [0, 25]
    assert curve.gpu_mb == [3072, 3072]


def test_it_samples_until_the_end_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficiency, "INTERVAL_S", 0.001)
    curve = SampledCurve()
    with sampled(curve):
        assert sampling()
        deadline = time.monotonic() + 60
        while len(curve.at_s) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert not sampling()
    assert curve.at_s == sorted(curve.at_s)
    assert len(curve.at_s) == len(curve.gpu_mb) == len(curve.cpu_percent) >= 6
    assert min(curve.cpu_percent) >= 0


def test_an_error_stops_it_and_writes_nothing(tmp_path: Path) -> None:
    costs = Efficiency(tmp_path)
    with pytest.raises(ZeroDivisionError), costs.case("a"):
        raise ZeroDivisionError
    assert not sampling()
    assert list(tmp_path.iterdir()) == []
    assert costs.plot() is None


def test_one_row_a_case_also_when_it_is_done_again(tmp_path: Path) -> None:
    for formula, names in (("trapezoid", "ab"), ("official", "bc")):
        costs = Efficiency(tmp_path, formula)
        for name in names:
            with costs.case(name) as curve:
                pass
            assert curve.peak_mb > 1
    assert [(row["case"], row["formula"]) for row in rows(tmp_path)] == [
        ("a", "trapezoid"),
        ("b", "official"),
        ("c", "official"),
    ]
    drawn = costs.plot()
    assert drawn is not None
    assert drawn.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert {path.name for path in tmp_path.iterdir()} == {"efficiency.csv", "efficiency.png"}


def test_what_cannot_be_profiled(tmp_path: Path) -> None:
    with pytest.raises(ContextsegError, match="official"):
        Efficiency(tmp_path, "offical")
    (tmp_path / "efficiency.csv").write_text("team,rank\nus,1\n", encoding="utf-8")
    with pytest.raises(ContextsegError, match="move it away"):
        Efficiency(tmp_path)
    assert (tmp_path / "efficiency.csv").read_text(encoding="utf-8") == "team,rank\nus,1\n"


@pytest.mark.parametrize("on", [True, False])
def test_predicting_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    """A row for each case that was segmented: not for one that fails, nor for one that is there.
    Off: no file.
    """
    label = Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4))

    def predict(self: Predictor, scan: tuple[Path, ...], *, name: str, **_: Any) -> Segmentation:
        assert sampling() == on
        if name == "bad":
            raise ContextsegError(scan[0], "broken", "mend it")
        return Segmentation(label, {}, name=name)

    monkeypatch.setattr(Predictor, "__post_init__", lambda self: None)
    monkeypatch.setattr(Predictor, "classes", {})
    monkeypatch.setattr("contextseg.predictor.predictor.scan_of", lambda images, *_: images)
    monkeypatch.setattr(Predictor, "predict", predict)
    cases = [Case(name, (tmp_path / name,)) for name in ("one", "bad", "two", "there")]
    out = tmp_path / "out"
    out.mkdir()
    (out / "there.nii.gz").write_bytes(b"")
    failed = Predictor([]).predict_cases(cases, out, efficiency=Efficiency(out) if on else None)
    assert list(failed) == ["bad"]
    assert not sampling()
    assert (out / "two.nii.gz").exists()
    assert (out / "efficiency.csv").exists() == on
    if on:
        assert [row["case"] for row in rows(out)] == ["one", "two"]
