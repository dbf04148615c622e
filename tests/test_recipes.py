"""Recipes on small phantoms in the layouts of the six downloads."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from contextseg.cli import app
from contextseg.compare import Grid, asked
from contextseg.data import phantom
from contextseg.data.check import check
from contextseg.data.layouts import open_dataset
from contextseg.data.masks import read_masks
from contextseg.data.topology import topology
from contextseg.disk import Problem, read_json, write_json
from contextseg.recipes import arrange as arranging
from contextseg.recipes.arrange import arrange, divide
from contextseg.recipes.command import SEEDS, beside, chosen, command, page, roi, rows, settings
from contextseg.recipes.find import Found, search
from contextseg.recipes.table import RECIPES, ROWS, Recipe, recipe_called
from contextseg.settings import Settings
from contextseg.volume import read, read_labels, write
from downloads import DOWNLOADS, NO_TUMOUR, atlas, atlas_r12, case, colon, kits, lits, vs

torch.set_num_threads(1)
ALL = pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))


# --- what the table says ----------------------------------------------------------------------------------------------


@ALL
def test_a_recipe_agrees_with_itself(recipe: Recipe) -> None:
    assert set(recipe.roi) <= set(recipe.classes)
    assert list(recipe.published) == list(recipe.roi)
    assert not recipe.numbers or len(recipe.numbers) == recipe.count
    if not (recipe.only_with_roi or recipe.published_split):
        assert recipe.train + recipe.test == recipe.count
    for paper in recipe.published.values():
        assert list(paper)[:6] == list(ROWS[:6])
        for dsc, sen, prc, hd95 in paper.values():
            assert max(dsc, sen, prc) < 100
            assert hd95 > 0
    assert ("anatomy" in next(iter(recipe.published.values()))) == (recipe.name in ("lits", "kits", "vs"))


@ALL
def test_the_settings_give_the_paper_s_network(recipe: Recipe) -> None:
    """Five levels, each halving all axes, 3 x 3 x 3 everywhere; 30 features, doubled up to 320."""
    made = Settings("data").set(settings(recipe))
    spacing = made.planning["spacing_mm"]
    assert spacing == pytest.approx(recipe.spacing_mm, rel=1e-3)
    strides, kernels = topology(made.planning["patch_vox"], spacing)
    assert strides == ((1, 1, 1), *[(2, 2, 2)] * 4)
    assert set(kernels) == {(3, 3, 3)}
    assert made.training.steps == {"vs": 100_000, "atlas": 100_000}.get(recipe.name, 200_000)
    assert made.planning["batch_size"] == 2
    assert not made.prediction.mirror
    assert Settings("data").set(settings(recipe, 0.01)).training.steps == made.training.steps // 100


def some_cases(recipe: Recipe, numbers: list[int]) -> list[Found]:
    return [Found(f"{recipe.name}_{n:03}", f"{recipe.name}_{n:03}", n, Path(), ()) for n in numbers]


@ALL
def test_whole_downloads_give_the_paper_s_counts(recipe: Recipe) -> None:
    numbers = [n for n in recipe.numbers or range(recipe.count) if recipe.name != "lits" or n not in NO_TUMOUR]
    cases = some_cases(recipe, numbers)
    train, test, how = divide(recipe, cases, {}, "")
    assert (len(train), len(test)) == (recipe.train, recipe.test)
    assert not {*train} & {*test}
    assert divide(recipe, cases, {}, "") == (train, test, how)
    assert ("seed" in how) == (recipe.name not in ("lits", "vs"))


def test_a_draw_keeps_patients_together() -> None:
    recipe = RECIPES["kits"]
    cases = some_cases(recipe, list(range(30)))
    patients = {c.name: f"p{c.number // 3}" for c in cases if c.number is not None}
    train, test, _ = divide(recipe, cases, patients, "")
    assert len(test) == 9  # 10 are a third, but patients have 3 scans each
    assert not {patients[name] for name in train} & {patients[name] for name in test}
    with pytest.raises(Problem, match="1 patient with 30 usable cases"):
        divide(recipe, cases, dict.fromkeys(patients, "one"), "")


# --- from a download to a data set ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", DOWNLOADS)
def test_a_download_becomes_a_data_set(layout: str, tmp_path: Path) -> None:
    name, build, train, test = DOWNLOADS[layout]
    recipe = RECIPES[name]
    made = arrange(recipe, build(tmp_path / "download"), tmp_path / "out", partial=True)
    data = open_dataset(made.folder)
    assert (len(data.train), len(data.test)) == (train, test) == (len(made.train), len(made.test))
    assert [f for f in check(made.folder, workers=1) if f.level == "error"] == []
    assert data.name == recipe.name
    assert data.channels == (recipe.channel,)
    assert dict(zip(data.classes, data.values)) == {"background": 0, **recipe.classes}
    for held in (*data.train, *data.test):
        assert held.images[0].is_symlink()
        assert held.label
        assert held.label.is_symlink()
        assert (held.label.resolve().parent == made.folder.parent / "labels") == (name == "atlas")
        label = read_labels(held.label).array
        assert set(np.unique(label).tolist()) == {0, *recipe.classes.values()}
    split = read_json(made.folder / "split.json")
    assert (split["train"], split["test"]) == (list(made.train), list(made.test))
    assert split["missing"]


def test_lits_without_tumours_is_left_out_and_livers_are_context(tmp_path: Path) -> None:
    made = arrange(RECIPES["lits"], lits(tmp_path / "download"), tmp_path / "out", partial=True)
    assert made.train == ("lits_000", "lits_003", "lits_007")
    assert made.test == ("lits_090", "lits_130")
    assert made.left_out == {"lits_032": "no tumour in its label"}
    assert made.anatomy
    scan, label = (made.folder / part for part in ("imagesTr/lits_003_0000.nii", "labelsTr/lits_003.nii"))
    masks, names = read_masks(made.anatomy, "lits_003", read(scan))
    assert names == ("liver",)
    np.testing.assert_array_equal(masks, read_labels(label).array == 1)


def test_a_stroke_s_masks_are_united_and_one_scan_of_each_patient_is_used(tmp_path: Path) -> None:
    made = arrange(RECIPES["atlas"], atlas(tmp_path / "download"), tmp_path / "out", partial=True)
    assert {*made.train, *made.test} == {f"atlas_{n}" for n in ("031768_t01", "031769_t01", "031770_t01", "031771_t02")}
    assert made.left_out == {"atlas_031770_t02": "a later scan of the patient of atlas_031770_t01"}
    truth = phantom.patient(31768, (16, 20, 20))[1]
    assert truth[:, :, :10].any()
    assert truth[:, :, 10:].any()
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "labels" / "atlas_031768_t01.nii.gz").array, truth)


def test_patients_of_the_download_are_kept_together(tmp_path: Path) -> None:
    folder = colon(tmp_path / "download")
    write_json(folder / "patients.json", {f"colon_{n:03}": f"p{n % 2}" for n in (1, 5, 6, 7, 9, 11)})
    made = arrange(RECIPES["colon"], folder, tmp_path / "out", partial=True)
    assert made.test == ("colon_006",)  # of two to test; p1 has five scans
    assert {case.patient for case in open_dataset(made.folder).test} == {"p0"}


# --- what can be wrong ------------------------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    recipe, folder = RECIPES["kits"], kits(tmp_path / "download")
    (folder / "data" / "case_00001" / "imaging.nii.gz").unlink()
    whole = (folder / "data" / "case_00002" / "imaging.nii.gz").read_bytes()
    (folder / "data" / "case_00002" / "imaging.nii.gz").write_bytes(whole[: len(whole) // 2])
    strange = folder / "data" / "case_00100" / "segmentation.nii.gz"
    label = read_labels(strange)
    write(strange, label.with_array(label.array * 3))
    (folder / "data" / "case_00208" / "segmentation.nii.gz").unlink()
    (folder / "data" / "case_00208" / "segmentation.nii.gz").symlink_to("nowhere")
    with pytest.raises(Problem) as raised:
        arrange(recipe, folder, tmp_path / "out")
    text = str(raised.value)
    assert "neither scan nor label of 204 of 210 cases is there: number 3-99, 101-207" in text
    assert "kits_00001: its scan is missing" in text
    assert "kits_00002: " in text
    assert "truncated or damaged" in text
    assert "label values 3, 6; this data set has 0 background, 1 kidney, 2 tumour" in text
    assert "kits_00208: its label is missing" in text
    assert "starter_code.get_imaging" in text
    assert not (tmp_path / "out" / "dataset").exists()
    made = arrange(recipe, folder, tmp_path / "out", partial=True)
    assert {*made.train, *made.test} == {"kits_00000", "kits_00209"}
    assert set(made.left_out) == {"kits_00002", "kits_00100"}


def test_a_whole_download_needs_no_permission(tmp_path: Path) -> None:
    parts = (range(4), range(4, 6))
    small = replace(RECIPES["lits"], numbers=tuple(range(6)), count=6, train=4, test=2, published_split=parts)
    folder = lits(tmp_path / "download", numbers=(0, 1, 2, 3, 4, 5))
    assert arrange(small, folder, tmp_path / "out").left_out == {}
    (folder / "Training Batch 1" / "volume-5.nii").unlink()
    with pytest.raises(Problem, match="lits_005: its scan is missing"):
        arrange(small, folder, tmp_path / "other")


def test_what_decathlon_lists_is_expected(tmp_path: Path) -> None:
    folder = colon(tmp_path / "download")
    assert search(replace(RECIPES["colon"], count=6), folder).wrong == ()
    assert search(RECIPES["colon"], folder).wrong == ("6 cases are there, of 126",)
    for part in ("imagesTr", "labelsTr"):
        (folder / "Task10_Colon" / part / "colon_005.nii.gz").unlink()
    assert search(RECIPES["colon"], folder).wrong == ("neither scan nor label of 1 of 6 cases is there: number 5",)
    (folder / "Task10_Colon" / "dataset.json").unlink()
    assert search(RECIPES["colon"], folder).wrong == ("5 cases are there, of 126",)


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "the folder does not exist"),
        (lambda folder: (shutil.rmtree(folder), folder.touch()), "is a file, not a folder"),
        (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "no file that belongs to liver tumour in CT"),
        (lambda folder: [p.unlink() for p in folder.rglob("volume-*")], "no case has both a scan and a label"),
        (
            lambda folder: (
                write(folder / "volume-1.nii.gz", read(folder / "Training Batch 1" / "volume-0.nii"))
                or write(folder / "segmentation-1.nii.gz", read(folder / "Training Batch 1" / "segmentation-0.nii"))
            ),
            "some files end in .nii and some in .nii.gz",
        ),
        (
            lambda folder: shutil.copytree(folder / "Training Batch 1", folder / "again"),
            "lits_000: there is more than one scan",
        ),
    ],
)
def test_folders_that_are_no_download(mend: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = lits(tmp_path / "download")
    mend(folder)
    with pytest.raises(Problem, match=message):
        arrange(RECIPES["lits"], folder, tmp_path / "out")


def test_an_output_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(Problem, match="a file stands where a folder is needed"):
        arrange(RECIPES["vs"], vs(tmp_path / "download"), tmp_path / "out", partial=True)


# --- again ------------------------------------------------------------------------------------------------------------


def test_a_second_call_reads_nothing_and_follows_a_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folder = RECIPES["lits"], lits(tmp_path / "download")
    first = arrange(recipe, folder, tmp_path / "out", partial=True)
    folder = folder.rename(tmp_path / "moved")
    seen: list[str] = []
    look = arranging._look
    monkeypatch.setattr(arranging, "_look", lambda r, c, out: seen.append(c.name) or look(r, c, out))
    assert arrange(recipe, folder, tmp_path / "out", partial=True) == first
    assert seen == []
    assert all(case.images[0].exists() for case in open_dataset(first.folder).train)
    volume = folder / "Training Batch 1" / "volume-3.nii"
    os.utime(volume, ns=(1, 1))  # as after another download of it
    (tmp_path / "out" / "anatomy" / "lits_007.nii.gz").unlink()
    arrange(recipe, folder, tmp_path / "out", partial=True)
    assert sorted(seen) == ["lits_003", "lits_007"]


def test_a_stopped_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folder = RECIPES["vs"], vs(tmp_path / "download")
    seen: list[int] = []

    def stop(done: int, of: int) -> None:
        seen.append(done)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arrange(recipe, folder, tmp_path / "out", partial=True, progress=stop)
    arrange(recipe, folder, tmp_path / "out", partial=True, progress=stop)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_files_are_copied_where_links_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refuse)
    made = arrange(RECIPES["atlas"], atlas_r12(tmp_path / "download"), tmp_path / "out", partial=True)
    data = open_dataset(made.folder)
    shutil.rmtree(tmp_path / "download")
    shutil.rmtree(tmp_path / "out" / "labels")
    assert [f for f in check(made.folder, workers=1) if f.level == "error"] == []
    assert not data.train[0].images[0].is_symlink()


def test_other_cases_need_another_folder(tmp_path: Path) -> None:
    recipe, folder = RECIPES["vs"], vs(tmp_path / "download")
    arrange(recipe, folder, tmp_path / "out", partial=True)
    case(3, folder / "vs_gk_3" / "t2.nii.gz", folder / "vs_gk_3" / "tumour.nii.gz")
    with pytest.raises(Problem, match="arranged from other cases"):
        arrange(recipe, folder, tmp_path / "out", partial=True)


# --- the command, and what comes of it --------------------------------------------------------------------------------


def test_rows() -> None:
    made = rows(RECIPES["atlas"], {"predicted": "/masks"})
    assert made["none"] == "none=supervised"
    assert made["kmeans"] == "kmeans=context:context=kmeans,context_classes=6"
    assert made["predicted"] == "predicted=context:context=anatomy,masks=/masks"
    assert set(made) == {*ROWS} - {"anatomy"}
    assert chosen(made, "CoLab-4, none") == ["CoLab-4=colab:context_classes=4,generator_lr=0.0003", "none=supervised"]
    with pytest.raises(Problem, match="did you mean CoLab-"):
        chosen(made, "CoLab-3")
    with pytest.raises(Problem, match="a comma or a semicolon"):
        rows(RECIPES["atlas"], {"predicted": "/a,b"})
    with pytest.raises(Problem, match="did you mean lits"):
        recipe_called("lit")
    with pytest.raises(Problem, match="no length of training"):
        settings(RECIPES["lits"], 0)


@ALL
def test_the_printed_command_asks_for_what_run_does(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Grid] = []
    monkeypatch.setattr("contextseg.compare.forecast", lambda grid, **_: seen.append(grid) or "")
    methods, words = list(rows(recipe).values()), settings(recipe)
    printed = shlex.split(command(recipe, "data", "out it is", methods, words).replace("\\\n", ""))  # as a shell does
    result = CliRunner().invoke(app, [*printed[1:], "--dry-run"])
    assert result.exit_code == 0, result.output
    assert seen == [asked("data", "out it is", methods, SEEDS, settings=words, roi=roi(recipe))]
    assert seen[0].roi == {"lits": ("tumour",), "kits": ("tumour",)}.get(recipe.name, ())
    assert len(seen[0].methods) == 6


def test_results_stand_beside_the_published_ones() -> None:
    """Means over cases, then over seeds; of the test split, and in per cent but for the distance."""
    scores = {"seed": [0, 0, 0, 1], "dsc": [0.2, 0.4, 0.9, 0.7], "split": ["test"] * 4, "class": "tumour"}
    table = pd.DataFrame({**scores, "method": "none", "sen": 0.5, "prc": 0.25, "hd95_mm": 12.34})
    table = pd.concat([table, table.assign(split="validation", dsc=1.0)])
    page = beside(RECIPES["lits"], table)
    ours = 100 * ((0.2 + 0.4 + 0.9) / 3 + 0.7) / 2
    assert f"| none | 54.4 | 58.8 | 58.9 | 111.1 | {ours:.1f} | 50.0 | 25.0 | 12.3 |" in page
    assert "| CoLab-2 | 62.5 | 62.8 | 67.3 | 69.4 | - | - | - | - |" in page


def test_one_command_from_a_download_to_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LiTS, plain training alone, for two steps, without each run's pictures; the second call trains nothing."""
    monkeypatch.setattr("contextseg.job.report", lambda *_: None)
    folder, out = lits(tmp_path / "download"), tmp_path / "out"
    small = ["steps=2", "base_width=4", "patch_vox=16,16,16", "spacing_mm=2,1,1", "device=cpu"]
    words = ["recipe", "lits", str(folder), "-o", str(out), "--partial", "--rows", "none"]
    words += [word for setting in small for word in ("--set", setting)]
    printed = CliRunner().invoke(app, words)
    assert printed.exit_code == 0, printed.output
    assert "contextseg compare" in printed.output
    assert "--roi tumour" in printed.output
    assert "--methods none=supervised" in printed.output
    assert "colab" not in printed.output
    assert "The paper has 83 and 35" in printed.output
    assert "1 (no tumour in its label)" in printed.output
    assert not (out / "compared").exists()
    ran = CliRunner().invoke(app, [*words, "--run"])
    assert ran.exit_code == 0, ran.output
    table = pd.read_csv(out / "compared" / "table.csv")
    assert set(table["class"]) == {"tumour"}
    assert set(table["case"]) == {"lits_090", "lits_130"}
    assert set(table["seed"]) == {0, 1}
    assert f"| none | 54.4 | 58.8 | 58.9 | 111.1 | {100 * table['dsc'].mean():.1f} |" in ran.output
    times = {path: path.stat().st_mtime_ns for path in out.rglob("model.pt")}
    assert len(times) == 2
    again = CliRunner().invoke(app, words)
    assert (out / "compared" / "beside.md").read_text(encoding="utf-8") in again.output + "\n"
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("model.pt")}


def test_the_command_line_s_own_errors(tmp_path: Path) -> None:
    folder = vs(tmp_path / "download")
    assert "lits" in CliRunner().invoke(app, ["recipe"]).output
    assert "vs_gk_seg_refT2" in CliRunner().invoke(app, ["recipe", "vs"]).output
    nowhere = CliRunner().invoke(app, ["recipe", "vs", str(folder)])
    assert isinstance(nowhere.exception, Problem)
    assert "no folder to work in" in str(nowhere.exception)
    words = ["recipe", "vs", str(folder), "-o", str(tmp_path / "out"), "--partial"]
    masks = CliRunner().invoke(app, [*words, "--masks", f"anatomy={tmp_path / 'none'}"])
    assert "there is no such folder of masks" in str(masks.exception)
    assert not (tmp_path / "out").exists()  # said before anything is read


def test_the_page_is_up_to_date() -> None:
    there = Path(__file__).parents[1] / "docs" / "recipes.md"
    assert there.read_text(encoding="utf-8") == page(), "write it again: see docs/generate.py"
