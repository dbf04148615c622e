"""FLARE22's table: the challenge's layout found, one command, resumed, honest about trials."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from contextseg.cli import app
from contextseg.data.layouts import open_dataset
from contextseg.data.phantom import write_flare22
from contextseg.errors import ContextsegError
from contextseg.metrics import FLARE22_TOLERANCE_MM
from contextseg.runs import Run
from contextseg.studies import api
from contextseg.studies.flare22 import PARTS, ROWS, find_scans, reproduce_flare22
from contextseg.studies.flare22.rows import runs_of, settings_of_run

torch.set_num_threads(1)
TINY = (
    "net=deeplab-small",
    "second=deeplab-small",
    "size=stcn-small",
    "batch_size=2",
    "patch_vox=16,16",
    "threshold=0.01",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flare22(tmp_path_factory.mktemp("flare") / "data", shape=(8, 16, 16))


def test_each_scan_of_the_challenge_has_its_part(data: Path) -> None:
    found = find_scans(data)
    assert found.counts == {"labelled": 2, "unlabelled": 2, "validation": 1, "test": 1}
    assert sorted(found.labels["labelled"]) == ["FLARE22_Tr_0001", "FLARE22_Tr_0002"]
    assert found.labels["unlabelled"] == {}
    assert len(found.problems) == 4  # each part has fewer scans than the challenge
    assert found.left_out == []


def test_an_nnunet_like_layout_is_known_too(data: Path, tmp_path: Path) -> None:
    train = data / "FLARE22_LabeledCase50"
    for source, target in (
        (train / "images", "imagesTr"),
        (train / "labels", "labelsTr"),
        (data / "FLARE22_UnlabeledCase1-1000", "unlabelledTr/1"),
        (data / "Validation" / "images", "imagesVal"),
        (data / "Validation" / "labels", "labelsVal"),
        (data / "Test" / "images", "imagesTs"),
    ):
        shutil.copytree(source, tmp_path / target)
    (tmp_path / "labelsTr" / "FLARE22_Tr_0002.nii.gz").unlink()
    found = find_scans(tmp_path)
    assert found.counts == {"labelled": 1, "unlabelled": 2, "validation": 1, "test": 1}
    assert "FLARE22_Tr_0002" in found.images["unlabelled"]
    assert len(found.labels["validation"]) == 1
    assert found.labels["test"] == {}


def test_what_is_not_the_challenge_is_refused_with_all_that_is_wrong(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ContextsegError, match=r"2 labelled scans.*has 50(.|\n)*--partial"):
        reproduce_flare22(data, tmp_path)
    with pytest.raises(ContextsegError, match="no such row"):
        reproduce_flare22(data, tmp_path, rows=("csp",))
    with pytest.raises(ContextsegError, match=r"there is no such setting.* net"):
        reproduce_flare22(data, tmp_path, settings=("nett=unet",))
    with pytest.raises(ContextsegError, match="both are needed"):
        reproduce_flare22(data / "Test", tmp_path, partial=True)
    with pytest.raises(ContextsegError, match="--masks"):
        api.reproduce("flare22", masks={"a": "b"}, verbose=False)


def test_without_a_folder_it_says_how_the_scans_lie() -> None:
    said = CliRunner().invoke(app, ["reproduce", "flare22"])
    assert said.exit_code == 0, said.output
    assert "FLARE22_UnlabeledCase1-1000" in said.output
    assert all(str(count) in said.output for count in PARTS.values())
    assert "flare22" in CliRunner().invoke(app, ["recipe"]).output


def test_the_paper_s_settings(data: Path, tmp_path: Path) -> None:
    text = str(reproduce_flare22(data, tmp_path / "out", partial=True))
    for words in ("--method cps", "--method pseudo", "--method stcn", "--published"):
        assert words in text
    assert runs_of(list(ROWS)) == ["baseline", "cps", "uncertainty", "stcn"]
    made = {name: settings_of_run(name, tmp_path) for name in runs_of(list(ROWS))}
    assert {one.training.steps for one in made.values()} == {50_000}
    assert {one.training.lr for one in made.values()} == {1e-4}
    assert all(one.planning["native"] for one in made.values())
    nets = ("transunet", "deeplab")
    assert (made["cps"].arguments["net"], made["cps"].arguments["second"]) == nets
    assert made["uncertainty"].planning["ct_windows"] == "abdomen,chest,spine"
    data_set = open_dataset(tmp_path / "out" / "dataset")
    assert data_set.classes[1:] == tuple(FLARE22_TOLERANCE_MM)
    assert [bool(case.label) for case in data_set.train].count(True) == 2
    assert len(data_set.train) == 4


def test_a_download_that_changed_does_not_change_what_was_learnt_from(
    data: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    reproduce_flare22(copy, tmp_path / "out", partial=True)
    next((copy / "FLARE22_UnlabeledCase1-1000").iterdir()).unlink()
    with pytest.raises(ContextsegError, match="arranged from other scans"):
        reproduce_flare22(copy, tmp_path / "out", partial=True)


def test_one_command_makes_the_table_and_goes_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["reproduce", "flare22", str(data), "-o", str(out), "--run", "--partial"]
    words += ["--scale", "0.00004", *(word for one in TINY for word in ("--set", one))]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out / "table4.csv")
    assert list(zip(table["row"], table["part"])) == [
        (row, part) for row in ROWS for part in ("validation", "test")
    ]
    assert table["dsc"].between(0, 1).all()
    assert (table["seconds"] > 0).all()
    assert table["published_dsc"].dropna().tolist() == [0.547, 0.762, 0.77, 0.784]
    assert table["trial"].str.contains("4e-05 of the paper's steps").all()
    assert "A trial, not the paper's experiment" in (out / "table4.md").read_text(encoding="utf-8")
    assert len(pd.read_csv(out / "organs.csv")) == 13 * 2 * 4
    assert Run.open(out / "runs" / "uncertainty").done("pseudo-1")
    maps = sorted(out.glob("predicted/*/*/*.nii.gz"))
    assert len(maps) == 8
    before = {path: path.stat().st_mtime_ns for path in (*maps, *out.glob("runs/*/*/model.pt"))}
    maps[0].unlink()  # as if it had been stopped
    shutil.rmtree(out / "scored")
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    assert {p for p in before if p.stat().st_mtime_ns != before[p]} == {maps[0]}
    assert pd.read_csv(out / "table4.csv")["dsc"].tolist() == table["dsc"].tolist()
