"""The CMU-Net paper's table by one command: rows, scans, slices, best and last weights, tests."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as students_t
from typer.testing import CliRunner

from contextseg.cli import app
from contextseg.data import phantom
from contextseg.data.layouts import open_dataset
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.settings import Settings
from contextseg.studies.api import reproduce
from contextseg.studies.cmunet import ROWS, reproduce_cmunet
from contextseg.studies.cmunet.arrange import arrange_seventeen
from contextseg.studies.cmunet.rows import Slices, method_word, parse_asked
from contextseg.studies.cmunet.table import over_runs, significance
from contextseg.studies.compare.grid import parse_grid

TINY = ("patch_vox=16,16", "base_width=4", "max_levels=2", "device=cpu")


def settings_of(name: str, *more: str) -> Settings:
    """The settings of a row's runs, as `compare` reads them."""
    asked = parse_asked(name, 0, "", trial=False, settings=more)
    word = method_word(ROWS[name], asked, Slices(1664, 298))
    grid = parse_grid("data", "out", {name: word})
    method, _, rest = grid.methods[0].partition("=")[2].partition(":")
    words: list[str] = []
    for part in rest.split(","):
        words = [*words, part] if "=" in part else [*words[:-1], f"{words[-1]},{part}"]
    return Settings("data", method).set(words)


@pytest.mark.parametrize("name", ROWS)
def test_each_row_has_the_papers_length_batch_rate_and_loss(name: str) -> None:
    settings = settings_of(name)
    joint = name in ("CMU-Net", "pretrained+joint", "residual", "five-poolings")
    batch = 6 if joint else 10
    assert settings.planning["batch_size"] == batch
    assert settings.training.lr == (0.001 if joint else 0.01)
    assert settings.training.steps == -(-166_400 // batch)
    assert settings.arguments["cycles"] == 10
    assert settings.planning["patch_vox"] == (256, 256)
    if name == "ours":
        assert settings.training.keep == "last"
        assert settings.augmentation.strength == 1
        return
    assert settings.training.keep == "best"
    assert settings.training.check_every == -(-1664 // batch)
    assert settings.training.check_batches == -(-298 // batch)
    assert settings.augmentation.strength == 0
    assert settings.arguments["every_slice"] is True
    assert (settings.arguments["loss"], settings.arguments["smooth"]) == ("soft_dice", 1)
    assert settings.planning["batch_dice"] is False


def test_what_somebody_sets_comes_after_the_papers() -> None:
    settings = settings_of("U-Net", "batch_size=4", "optimizer=adamw")
    assert settings.training.steps == 41_600
    assert settings.arguments["optimizer"] == "adamw"
    for word, remedy in (("steps=5", "--epochs"), ("training.check_every=0", "once an epoch")):
        with pytest.raises(ContextsegError, match=remedy):
            parse_asked("", 0, "", trial=False, settings=[word])
    for rows, epochs, seeds, said in (
        ("U-net", 0, "", "did you mean U-Net"),
        ("", -1, "", "--epochs -1"),
        ("", 0, "0,x", "x is no number"),
    ):
        with pytest.raises(ContextsegError, match=said):
            parse_asked(rows, epochs, seeds, trial=False)


# --- 17 scans -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seventeen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Livers with tumours, of 18 patients, of whom the first has two scans."""
    data = phantom.write_dataset(
        tmp_path_factory.mktemp("lits") / "data", labelled=19, test=0, shape=(4, 12, 12), classes=3
    )
    table = read_json(data / "dataset.json")
    table["labels"] = {"background": 0, "liver": 1, "tumour": 2}
    write_json(data / "dataset.json", table)
    names = [case.name for case in open_dataset(data).train]
    write_json(data / "patients.json", {n: names[0] if i < 2 else n for i, n in enumerate(names)})
    return data


def test_seventeen_patients_are_drawn_and_a_tumour_is_liver(
    seventeen: Path, tmp_path: Path
) -> None:
    arranged = arrange_seventeen(seventeen, tmp_path / "dataset")
    assert arranged.counts == (10, 2, 5)
    every = (*arranged.train, *arranged.validation, *arranged.test)
    assert len(set(every)) == 17
    patients = read_json(seventeen / "patients.json")
    assert len({patients[name] for name in every}) == 17
    data = open_dataset(arranged.folder)
    assert data.classes == ("background", "liver")
    assert data.splits == ((arranged.train, arranged.validation),)
    case = data.test[0]
    before = np.asarray(nib.load(seventeen / "labelsTr" / case.label.name).dataobj)
    after = np.asarray(nib.load(case.label).dataobj)
    assert (before == 2).any()
    assert np.array_equal(after, before > 0)
    assert arrange_seventeen(seventeen, tmp_path / "dataset") == arranged


def test_too_few_patients_are_named(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=6, test=0, shape=(4, 12, 12))
    with pytest.raises(ContextsegError, match="17 labelled patients"):
        arrange_seventeen(data, tmp_path / "dataset")


# --- the table ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four to train, one to validate, two to test, as the data set says."""
    folder = phantom.write_dataset(
        tmp_path_factory.mktemp("cmunet") / "data", labelled=5, test=2, shape=(6, 16, 16)
    )
    names = [case.name for case in open_dataset(folder).train]
    write_json(folder / "splits_final.json", [{"train": names[:4], "val": names[4:]}])
    return folder


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_one_command_makes_the_table_and_goes_on_where_it_stopped(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["reproduce", "cmunet", str(data), "-o", str(out), "--trial", "--epochs", "3"]
    words += ["--rows", "U-Net,frozen,ours", "--seeds", "0"]
    for word in TINY:
        words += ["--set", word]
    described = CliRunner().invoke(app, words)
    assert described.exit_code == 0, described.output
    assert "4 / 1 / 2 scans" in described.output
    assert not (out / "compared").exists()

    done = CliRunner().invoke(app, [*words, "--run"])
    assert done.exit_code == 0, done.output
    assert "A trial, not the paper's experiment" in " ".join(done.output.split())
    assert "| U-Net | paper | best |" in done.output
    assert "0.8567 ± 0.0351" in done.output
    weights = {path: path.stat().st_mtime_ns for path in out.glob("compared/runs/*/train-*/*.pt")}
    assert len([path for path in weights if path.name == "last.pt"]) == 1 + 2

    rows = pd.read_csv(out / "slices.csv", dtype={"case": str})
    kinds = rows[["method", "weights", "seed"]].drop_duplicates().to_numpy().tolist()
    assert sorted(map(tuple, kinds)) == sorted(
        (name, which, seed)
        for name in ("U-Net", "frozen", "ours")
        for which in (("last",) if name == "ours" else ("best", "last"))
        for seed in (0,)
    )
    log = (out / "compared" / "test_evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    scored = {json.loads(line)["run"] for line in log}
    assert {"U-Net-fold0-seed0", "U-Net-fold0-seed0-last", "ours-fold0-seed0"} <= scored
    assert "ours-fold0-seed0-last" not in scored

    for which, folder in (("best", "test/predictions"), ("last", "last")):
        cell = out / "compared" / "runs" / "U-Net-fold0-seed0"
        case = open_dataset(data).test[0]
        masks = [
            np.asarray(nib.load(path).dataobj) > 0
            for path in (cell / folder / f"{case.name}.nii.gz", case.label)
        ]
        slices = [(a, b) for a, b in zip(*(np.moveaxis(m, 2, 0) for m in masks)) if (a | b).any()]
        want = float(np.mean([dice(a, b) for a, b in slices]))
        row = rows[(rows["run"] == cell.name) & (rows["weights"] == which)]
        assert float(row.loc[row["case"] == case.name, "dsc"].iloc[0]) == pytest.approx(want)

    frozen = out / "compared" / "runs" / "frozen-fold0-seed0"
    (frozen / "slices-last.csv").unlink()
    (out / "table.md").unlink()
    again = CliRunner().invoke(app, [*words, "--run"])
    assert again.exit_code == 0, again.output
    assert (out / "table.md").read_text(encoding="utf-8").strip() in again.output
    assert weights == {path: path.stat().st_mtime_ns for path in weights}


def test_options_of_the_other_paper_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ContextsegError, match="--epochs 3: it has a use with cmunet alone"):
        reproduce("lits", epochs=3)
    with pytest.raises(ContextsegError, match=r"--scale 0.1: it has a use with CoLab"):
        reproduce("cmunet", data, tmp_path, scale=0.1)
    with pytest.raises(ContextsegError, match="no folder to work in"):
        reproduce("cmunet", data)
    text = str(reproduce("cmunet"))
    assert "100 epochs of every slice, 10 runs" in text
    assert all(f"  {name} (" in text for name in ROWS)
    assert repr(reproduce_cmunet()) == "CMUNetTable(not run)"
    assert not len(reproduce_cmunet().cases)


def test_tests_are_of_deployed_weights_over_runs_and_patients() -> None:
    values = {"U-Net": [0.50, 0.54, 0.58], "CMU-Net": [0.60, 0.61, 0.65], "ours": [0.7, 0.7, 0.8]}
    lines = []
    for name, means in values.items():
        for seed, mean in enumerate(means):
            for which in ("last",) if name == "ours" else ("best", "last"):
                for case, shift in (("a", -0.1), ("b", 0.1)):
                    score = mean + shift - (0.2 if which == "last" and name != "ours" else 0)
                    row = {"method": name, "seed": seed, "weights": which, "case": case}
                    row |= {"class": "liver", "status": "both", "patient": case}
                    lines.append(
                        {**row, "dsc": score, "hd_mm": 9 - score, "dsc_3d": 0, "hd95_mm_3d": 0}
                    )
    table = pd.DataFrame(lines)
    assert over_runs(table)["dsc"].iloc[0] == pytest.approx(0.5)
    compared = significance(table).set_index(["measure", "a", "b"])
    assert [key[1:] for key in compared.loc["dsc":"dsc"].index] == [
        ("U-Net", "CMU-Net"),
        ("U-Net", "ours"),
        ("CMU-Net", "ours"),
    ]
    line = compared.loc["dsc", "U-Net", "CMU-Net"]
    a, b = (np.array(values[name]) for name in ("U-Net", "CMU-Net"))
    va, vb = a.var(ddof=1) / 3, b.var(ddof=1) / 3
    t = (a.mean() - b.mean()) / sqrt(va + vb)
    freedom = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 2)
    assert line["difference"] == pytest.approx(-0.08)
    assert line["p_runs"] == pytest.approx(2 * students_t.sf(abs(t), freedom))
    assert line["p_patients"] == pytest.approx(0.5)  # two patients, both the same way
    one = significance(table[table["seed"] == 0])
    assert one["p_runs"].isna().all()
