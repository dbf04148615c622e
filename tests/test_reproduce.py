"""The paper's data sets on small phantoms in the layouts of the six downloads."""

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

import laws
from contextseg.cli import app
from contextseg.data import phantom
from contextseg.data.check import check
from contextseg.data.layouts import open_dataset
from contextseg.data.masks import read_masks
from contextseg.data.topology import topology
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.methods.colab import CoLab, Generator
from contextseg.settings import Settings
from contextseg.studies.compare import Grid, parse_grid
from contextseg.studies.compare.grid import method_settings
from contextseg.studies.reproduce import REPRODUCTIONS, Reproduction, reproduce
from contextseg.studies.reproduce import arrange as arranging
from contextseg.studies.reproduce.arrange import arrange, split_cases
from contextseg.studies.reproduce.beside import beside_csv, beside_published, departures
from contextseg.studies.reproduce.command import SEEDS, command_line, paper_settings, roi_words
from contextseg.studies.reproduce.find import DownloadedCase, find_cases
from contextseg.studies.reproduce.rows import PAPER_COLAB, method_rows, select_rows
from contextseg.studies.reproduce.table import ROWS, find_reproduction
from contextseg.volume import read, read_labels, write
from downloads import DOWNLOADS, NO_TUMOUR, atlas, atlas_r12, case, colon, kits, lits, vs
from systems import LINKS, needs_links

torch.set_num_threads(1)
ALL = pytest.mark.parametrize("reproduction", REPRODUCTIONS.values(), ids=list(REPRODUCTIONS))


# --- what the table says --------------------------------------------------------------------------


@ALL
def test_the_table_agrees_with_itself(reproduction: Reproduction) -> None:
    assert set(reproduction.roi) <= set(reproduction.classes)
    assert list(reproduction.published) == list(reproduction.roi)
    assert not reproduction.numbers or len(reproduction.numbers) == reproduction.count
    if not (reproduction.only_with_roi or reproduction.published_split):
        assert reproduction.train + reproduction.test == reproduction.count
    for paper in reproduction.published.values():
        assert list(paper)[:6] == list(ROWS[:6])
        for dsc, sen, prc, hd95 in paper.values():
            assert max(dsc, sen, prc) < 100
            assert hd95 > 0
    assert ("anatomy" in next(iter(reproduction.published.values()))) == (
        reproduction.name in ("lits", "kits", "vs")
    )


@ALL
def test_the_settings_give_the_paper_s_network(reproduction: Reproduction) -> None:
    """Five levels, each halving all axes, 3 x 3 x 3 everywhere; 30 features, doubled up to 320."""
    settings = Settings("data").set(paper_settings(reproduction))
    spacing = settings.planning["spacing_mm"]
    assert spacing == pytest.approx(reproduction.spacing_mm, rel=1e-3)
    strides, kernels = topology(settings.planning["patch_vox"], spacing)
    assert strides == ((1, 1, 1), *[(2, 2, 2)] * 4)
    assert set(kernels) == {(3, 3, 3)}
    assert settings.training.steps == {"vs": 100_000, "atlas": 100_000}.get(
        reproduction.name, 200_000
    )
    assert settings.planning["batch_size"] == 2
    assert not settings.prediction.mirror
    assert (
        Settings("data").set(paper_settings(reproduction, 0.01)).training.steps
        == settings.training.steps // 100
    )


def some_cases(reproduction: Reproduction, numbers: list[int]) -> list[DownloadedCase]:
    return [
        DownloadedCase(f"{reproduction.name}_{n:03}", f"{reproduction.name}_{n:03}", n, Path(), ())
        for n in numbers
    ]


@ALL
def test_whole_downloads_give_the_paper_s_counts(reproduction: Reproduction) -> None:
    numbers = [
        n
        for n in reproduction.numbers or range(reproduction.count)
        if reproduction.name != "lits" or n not in NO_TUMOUR
    ]
    cases = some_cases(reproduction, numbers)
    train, test, how = split_cases(reproduction, cases, {}, "")
    assert (len(train), len(test)) == (reproduction.train, reproduction.test)
    assert not {*train} & {*test}
    assert split_cases(reproduction, cases, {}, "") == (train, test, how)
    assert ("seed" in how) == (reproduction.name not in ("lits", "vs"))


def test_a_draw_keeps_patients_together() -> None:
    reproduction = REPRODUCTIONS["kits"]
    cases = some_cases(reproduction, list(range(30)))
    patients = {c.name: f"p{c.number // 3}" for c in cases if c.number is not None}
    train, test, _ = split_cases(reproduction, cases, patients, "")
    assert len(test) == 9  # 10 are a third, but patients have 3 scans each
    assert not {patients[name] for name in train} & {patients[name] for name in test}
    with pytest.raises(ContextsegError, match="1 patient with 30 usable cases"):
        split_cases(reproduction, cases, dict.fromkeys(patients, "one"), "")


# --- from a download to a data set ----------------------------------------------------------------


@pytest.mark.parametrize("layout", DOWNLOADS)
def test_a_download_becomes_a_data_set(layout: str, tmp_path: Path) -> None:
    name, build, train, test = DOWNLOADS[layout]
    reproduction = REPRODUCTIONS[name]
    arranged = arrange(reproduction, build(tmp_path / "download"), tmp_path / "out", partial=True)
    data = open_dataset(arranged.folder)
    assert (
        (len(data.train), len(data.test))
        == (train, test)
        == (len(arranged.train), len(arranged.test))
    )
    assert [f for f in check(arranged.folder, workers=1) if f.level == "error"] == []
    assert data.name == reproduction.name
    assert data.channels == (reproduction.channel,)
    assert dict(zip(data.classes, data.values)) == {"background": 0, **reproduction.classes}
    for held in (*data.train, *data.test):
        assert held.images[0].is_symlink() == LINKS
        assert held.label
        assert held.label.is_symlink() == LINKS
        made = held.label.resolve().parent == arranged.folder.parent / "labels"
        assert not LINKS or made == (name == "atlas")
        label = read_labels(held.label).array
        assert set(np.unique(label).tolist()) == {0, *reproduction.classes.values()}
    split = read_json(arranged.folder / "split.json")
    assert (split["train"], split["test"]) == (list(arranged.train), list(arranged.test))
    assert split["missing"]


def test_lits_without_tumours_is_left_out_and_livers_are_context(tmp_path: Path) -> None:
    arranged = arrange(
        REPRODUCTIONS["lits"], lits(tmp_path / "download"), tmp_path / "out", partial=True
    )
    assert arranged.train == ("lits_000", "lits_003", "lits_007")
    assert arranged.test == ("lits_090", "lits_130")
    assert arranged.left_out == {"lits_032": "no tumour in its label"}
    assert arranged.anatomy
    scan, label = (
        arranged.folder / part for part in ("imagesTr/lits_003_0000.nii", "labelsTr/lits_003.nii")
    )
    masks, names = read_masks(arranged.anatomy, "lits_003", read(scan))
    assert names == ("liver",)
    np.testing.assert_array_equal(masks, read_labels(label).array == 1)


def test_a_stroke_s_masks_are_united_and_one_scan_of_each_patient_is_used(tmp_path: Path) -> None:
    arranged = arrange(
        REPRODUCTIONS["atlas"], atlas(tmp_path / "download"), tmp_path / "out", partial=True
    )
    assert {*arranged.train, *arranged.test} == {
        f"atlas_{n}" for n in ("031768_t01", "031769_t01", "031770_t01", "031771_t02")
    }
    assert arranged.left_out == {
        "atlas_031770_t02": "a later scan of the patient of atlas_031770_t01"
    }
    truth = phantom.patient(31768, (16, 20, 20))[1]
    assert truth[:, :, :10].any()
    assert truth[:, :, 10:].any()
    np.testing.assert_array_equal(
        read_labels(tmp_path / "out" / "labels" / "atlas_031768_t01.nii.gz").array, truth
    )


def test_patients_of_the_download_are_kept_together(tmp_path: Path) -> None:
    folder = colon(tmp_path / "download")
    write_json(
        folder / "patients.json", {f"colon_{n:03}": f"p{n % 2}" for n in (1, 5, 6, 7, 9, 11)}
    )
    arranged = arrange(REPRODUCTIONS["colon"], folder, tmp_path / "out", partial=True)
    assert arranged.test == ("colon_006",)  # of two to test; p1 has five scans
    assert {case.patient for case in open_dataset(arranged.folder).test} == {"p0"}


# --- what can be wrong ----------------------------------------------------------------------------


@needs_links
def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    reproduction, folder = REPRODUCTIONS["kits"], kits(tmp_path / "download")
    (folder / "data" / "case_00001" / "imaging.nii.gz").unlink()
    whole = (folder / "data" / "case_00002" / "imaging.nii.gz").read_bytes()
    (folder / "data" / "case_00002" / "imaging.nii.gz").write_bytes(whole[: len(whole) // 2])
    strange = folder / "data" / "case_00100" / "segmentation.nii.gz"
    label = read_labels(strange)
    write(strange, label.with_array(label.array * 3))
    (folder / "data" / "case_00208" / "segmentation.nii.gz").unlink()
    (folder / "data" / "case_00208" / "segmentation.nii.gz").symlink_to("nowhere")
    with pytest.raises(ContextsegError) as raised:
        arrange(reproduction, folder, tmp_path / "out")
    text = str(raised.value)
    assert "neither scan nor label of 204 of 210 cases is there: number 3-99, 101-207" in text
    assert "kits_00001: its scan is missing" in text
    assert "kits_00002: " in text
    assert "truncated or damaged" in text
    assert "label values 3, 6; this data set has 0 background, 1 kidney, 2 tumour" in text
    assert "kits_00208: its label is missing" in text
    assert "starter_code.get_imaging" in text
    assert not (tmp_path / "out" / "dataset").exists()
    arranged = arrange(reproduction, folder, tmp_path / "out", partial=True)
    assert {*arranged.train, *arranged.test} == {"kits_00000", "kits_00209"}
    assert set(arranged.left_out) == {"kits_00002", "kits_00100"}


def test_a_whole_download_needs_no_permission(tmp_path: Path) -> None:
    parts = (range(4), range(4, 6))
    small = replace(
        REPRODUCTIONS["lits"],
        numbers=tuple(range(6)),
        count=6,
        train=4,
        test=2,
        published_split=parts,
    )
    folder = lits(tmp_path / "download", numbers=(0, 1, 2, 3, 4, 5))
    assert arrange(small, folder, tmp_path / "out").left_out == {}
    (folder / "Training Batch 1" / "volume-5.nii").unlink()
    with pytest.raises(ContextsegError, match="lits_005: its scan is missing"):
        arrange(small, folder, tmp_path / "other")


def test_what_decathlon_lists_is_expected(tmp_path: Path) -> None:
    folder = colon(tmp_path / "download")
    assert find_cases(replace(REPRODUCTIONS["colon"], count=6), folder).problems == ()
    assert find_cases(REPRODUCTIONS["colon"], folder).problems == ("6 cases there, of 126",)
    for part in ("imagesTr", "labelsTr"):
        (folder / "Task10_Colon" / part / "colon_005.nii.gz").unlink()
    assert find_cases(REPRODUCTIONS["colon"], folder).problems == (
        "neither scan nor label of 1 of 6 cases is there: number 5",
    )
    (folder / "Task10_Colon" / "dataset.json").unlink()
    assert find_cases(REPRODUCTIONS["colon"], folder).problems == ("5 cases there, of 126",)


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "the folder does not exist"),
        (lambda folder: (shutil.rmtree(folder), folder.touch()), "is a file, not a folder"),
        (
            lambda folder: (shutil.rmtree(folder), folder.mkdir()),
            "no file that belongs to liver tumour in CT",
        ),
        (
            lambda folder: [p.unlink() for p in folder.rglob("volume-*")],
            "no case has both a scan and a label",
        ),
        (
            lambda folder: (
                write(
                    folder / "volume-1.nii.gz", read(folder / "Training Batch 1" / "volume-0.nii")
                )
                or write(
                    folder / "segmentation-1.nii.gz",
                    read(folder / "Training Batch 1" / "segmentation-0.nii"),
                )
            ),
            "some files end in .nii and some in .nii.gz",
        ),
        (
            lambda folder: shutil.copytree(folder / "Training Batch 1", folder / "again"),
            "lits_000: there is more than one scan",
        ),
    ],
)
def test_folders_that_are_no_download(
    mend: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    folder = lits(tmp_path / "download")
    mend(folder)
    with pytest.raises(ContextsegError, match=message):
        arrange(REPRODUCTIONS["lits"], folder, tmp_path / "out")


def test_an_output_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(ContextsegError, match="a file stands where a folder is needed"):
        arrange(REPRODUCTIONS["vs"], vs(tmp_path / "download"), tmp_path / "out", partial=True)


# --- again ----------------------------------------------------------------------------------------


def test_a_second_call_reads_nothing_and_follows_a_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduction, folder = REPRODUCTIONS["lits"], lits(tmp_path / "download")
    first = arrange(reproduction, folder, tmp_path / "out", partial=True)
    folder = folder.rename(tmp_path / "moved")
    names: list[str] = []
    read_case = arranging._read_case
    monkeypatch.setattr(
        arranging, "_read_case", lambda r, c, out: names.append(c.name) or read_case(r, c, out)
    )
    assert arrange(reproduction, folder, tmp_path / "out", partial=True) == first
    assert names == []
    assert all(case.images[0].exists() for case in open_dataset(first.folder).train)
    volume = folder / "Training Batch 1" / "volume-3.nii"
    os.utime(volume, ns=(1, 1))  # as after another download of it
    (tmp_path / "out" / "anatomy" / "lits_007.nii.gz").unlink()
    arrange(reproduction, folder, tmp_path / "out", partial=True)
    assert sorted(names) == ["lits_003", "lits_007"]


def test_a_stopped_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reproduction, folder = REPRODUCTIONS["vs"], vs(tmp_path / "download")
    steps: list[int] = []

    def stop(done: int, of: int) -> None:
        steps.append(done)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arrange(reproduction, folder, tmp_path / "out", partial=True, progress=stop)
    arrange(reproduction, folder, tmp_path / "out", partial=True, progress=stop)
    assert steps == [1, 2, 3, 4, 5, 6]


def test_files_are_copied_where_links_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refuse)
    arranged = arrange(
        REPRODUCTIONS["atlas"], atlas_r12(tmp_path / "download"), tmp_path / "out", partial=True
    )
    data = open_dataset(arranged.folder)
    shutil.rmtree(tmp_path / "download")
    shutil.rmtree(tmp_path / "out" / "labels")
    assert [f for f in check(arranged.folder, workers=1) if f.level == "error"] == []
    assert not data.train[0].images[0].is_symlink()


def test_other_cases_need_another_folder(tmp_path: Path) -> None:
    reproduction, folder = REPRODUCTIONS["vs"], vs(tmp_path / "download")
    arrange(reproduction, folder, tmp_path / "out", partial=True)
    case(3, folder / "vs_gk_3" / "t2.nii.gz", folder / "vs_gk_3" / "tumour.nii.gz")
    with pytest.raises(ContextsegError, match="arranged from other cases"):
        arrange(reproduction, folder, tmp_path / "out", partial=True)


# --- the command, and what comes of it ------------------------------------------------------------


PAPER = (
    "generator=full,generator_lr=0.0003,generator_every=1,lookahead_items=1,lookahead_parts=1,"
    "lookahead_layers=all,labels_from=updated,background=max"
)


def test_rows() -> None:
    rows = method_rows(REPRODUCTIONS["atlas"], {"predicted": "/masks"})
    assert rows["none"] == "none=supervised"
    assert rows["kmeans"] == "kmeans=context:context=kmeans,context_classes=6,background=max"
    masks = "context=anatomy,masks=/masks,background=max"
    assert rows["predicted"] == f"predicted=context:{masks}"
    fast = {f"CoLab-{t}-fast" for t in (2, 4, 6)}
    assert set(rows) == ({*ROWS} | fast) - {"anatomy"}
    assert select_rows(rows, "CoLab-4, none").methods == (
        f"CoLab-4=colab:context_classes=4,{PAPER}",
        "none=supervised",
    )
    everything = select_rows(rows, "")
    assert len(everything.methods) == 7
    assert everything.largest == ("none",)
    assert not any("fast" in method for method in everything.methods)
    assert select_rows(rows, "CoLab-2-fast").methods == ("CoLab-2-fast=colab:context_classes=2",)
    assert select_rows(rows, "none-largest").methods == ("none=supervised",)
    own = select_rows(rows, "every5=CoLab-2:generator_every=5,patch_vox=8,8,8; w=none:lr=1")
    assert own.methods[0].endswith("background=max,generator_every=5,patch_vox=8,8,8")
    assert own.methods[1] == "w=supervised:lr=1"
    for wrong in ("CoLab-2:lr=1", "none=CoLab-2", "none=CoLab-2:lr=1"):
        with pytest.raises(ContextsegError, match="not the paper's row"):
            select_rows(rows, wrong)
    with pytest.raises(ContextsegError, match="did you mean CoLab-"):
        select_rows(rows, "CoLab-3")
    with pytest.raises(ContextsegError, match="a comma or a semicolon"):
        method_rows(REPRODUCTIONS["atlas"], {"predicted": "/a,b"})
    with pytest.raises(ContextsegError, match="did you mean lits"):
        find_reproduction("lit")
    with pytest.raises(ContextsegError, match="no length of training"):
        paper_settings(REPRODUCTIONS["lits"], 0)


def test_colab_is_the_paper_s() -> None:
    """g of f's size, in every step, all of the batch, trained f after g; argmax of all channels."""
    for t in (2, 4, 6):
        word = method_rows(REPRODUCTIONS["lits"])[f"CoLab-{t}"]
        arguments = method_settings(word, "data", paper_settings(REPRODUCTIONS["lits"])).arguments
        method = CoLab(laws.plan(), **arguments)
        full = Generator(laws.plan(), t, "full")
        assert [p.shape for p in method.generator.parameters()] == [
            p.shape for p in full.parameters()
        ]
        assert (method.every, method.turns, method.parts) == (1, 1, 1)
        assert (method.last, method.relabels, method.background) == (False, True, "max")
        assert method.optimizers(0.01)["generator"].param_groups[0]["lr"] == 3e-4
        assert arguments.keys() == {*PAPER_COLAB, "context_classes"}


def test_what_is_not_the_paper_s_is_a_trial() -> None:
    reproduction = REPRODUCTIONS["lits"]
    rows, words = method_rows(reproduction), paper_settings(reproduction)
    paper = select_rows(rows, "").methods

    def of(methods: tuple[str, ...], *more: str, seeds: str = SEEDS, counts: object = None) -> str:
        grid = parse_grid("data", "out", list(methods), seeds, settings=[*words, *more])
        return "; ".join(departures(grid, rows, words, SEEDS, counts))

    assert of(paper) == ""
    assert of(paper, "device=cpu", "save_every=7", "windows=1") == ""
    assert of((*paper, "mine=colab:generator_every=5")) == ""  # no published number beside it
    assert of(paper, "steps=20") == "steps 20 instead of 200000"
    assert of(paper, "base_width=8") == "base_width 8 instead of 30"
    assert of(paper, seeds="0") == "seeds 0 instead of 0, 1"
    assert of(paper, counts=((5, 2), (83, 35))) == "5 + 2 cases instead of 83 + 35"
    other = ("CoLab-2=colab:context_classes=2",)
    assert "generator the default instead of full" in of(other)


@ALL
def test_the_printed_command_asks_for_what_run_does(
    reproduction: Reproduction, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids: list[Grid] = []
    monkeypatch.setattr(
        "contextseg.studies.compare.forecast", lambda grid, **_: grids.append(grid) or ""
    )
    rows, words = select_rows(method_rows(reproduction), ""), paper_settings(reproduction)
    printed = shlex.split(
        command_line(reproduction, "data", "out it is", rows, words).replace("\\\n", "")
    )  # as a shell does
    result = CliRunner().invoke(app, [*printed[1:], "--dry-run"])
    assert result.exit_code == 0, result.output
    assert grids == [
        parse_grid(
            "data", "out it is", rows.methods, SEEDS, settings=words, roi=roi_words(reproduction)
        )
    ]
    assert grids[0].roi == {"lits": ("tumour",), "kits": ("tumour",)}.get(reproduction.name, ())
    assert len(grids[0].methods) == 6
    assert printed[printed.index("--convention") + 1] == "colab"
    assert printed[printed.index("--largest-component") + 1] == "none"


def test_results_stand_beside_the_published_ones() -> None:
    """Means over cases, then over seeds; of the test split, in per cent but for the distance."""
    scores = {
        "seed": [0, 0, 0, 1],
        "dsc": [0.2, 0.4, 0.9, 0.7],
        "split": ["test"] * 4,
        "class": "tumour",
    }
    table = pd.DataFrame({**scores, "method": "none", "sen": 0.5, "prc": 0.25, "hd95_mm": 12.34})
    table = pd.concat([table, table.assign(split="validation", dsc=1.0)])
    page = beside_published(REPRODUCTIONS["lits"], table)
    ours = 100 * ((0.2 + 0.4 + 0.9) / 3 + 0.7) / 2
    assert f"| none | 54.4 | 58.8 | 58.9 | 111.1 | {ours:.1f} | 50.0 | 25.0 | 12.3 |" in page
    assert "| CoLab-2 | 62.5 | 62.8 | 67.3 | 69.4 | - | - | - | - |" in page
    assert "measured here, by this library's definitions" in page
    assert "trial" not in page
    trial = ["steps 20 instead of 200000"]
    page = beside_published(
        REPRODUCTIONS["lits"], table.assign(convention="colab", method="none-largest"), trial
    )
    assert page.startswith("**A trial, not the paper's setting: steps 20 instead of 200000.**")
    assert "| DSC, a trial here |" in page
    assert "by the convention colab" in page
    assert f"| none, largest component | - | - | - | - | {ours:.1f} |" in page
    lines = beside_csv(REPRODUCTIONS["lits"], table, trial).splitlines()
    assert lines[0] == "class,row,metric,published,here,convention,trial"
    assert lines[1] == (
        f"tumour,none,DSC,54.4,{ours:.4f},this library's definitions,steps 20 instead of 200000"
    )
    assert lines[5].startswith("tumour,kmeans,DSC,61.4,,")


def test_one_command_from_a_download_to_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiTS, plain training alone, for two steps, without each run's pictures; the second call
    trains nothing.
    """
    monkeypatch.setattr("contextseg.pipeline.report", lambda *_: None)
    folder, out = lits(tmp_path / "download"), tmp_path / "out"
    small = ["steps=2", "base_width=4", "patch_vox=16,16,16", "spacing_mm=2,1,1", "device=cpu"]
    words = ["reproduce", "lits", str(folder), "-o", str(out), "--partial", "--rows", "none"]
    words += [word for setting in small for word in ("--set", setting)]
    printed = CliRunner().invoke(app, words)
    assert printed.exit_code == 0, printed.output
    assert "contextseg compare" in printed.output
    assert "--roi tumour" in printed.output
    assert "--methods none=supervised" in printed.output
    assert "=colab" not in printed.output
    assert "The paper has 83 and 35" in printed.output
    assert "1 (no tumour in its label)" in printed.output
    assert not (out / "compared").exists()
    ran = CliRunner().invoke(app, [*words, "--run"])
    assert ran.exit_code == 0, ran.output
    table = pd.read_csv(out / "compared" / "by-colab" / "table.csv")
    assert set(table["convention"]) == {"colab"}
    assert set(table["class"]) == {"tumour"}
    assert set(table["case"]) == {"lits_090", "lits_130"}
    assert set(table["seed"]) == {0, 1}
    assert f"| none | 54.4 | 58.8 | 58.9 | 111.1 | {100 * table['dsc'].mean():.1f} |" in ran.output
    note = "A trial, not the paper's setting: steps 2 instead of 200000"
    assert note in ran.output
    assert "3 + 2 cases instead of 83 + 35" in ran.output
    for name in ("test.md", "test.tex", "report.html", "beside.md", "beside.csv"):
        text = (out / "compared" / "by-colab" / name).read_text(encoding="utf-8")
        assert "steps 2 instead of 200000" in text, name
    times = {path: path.stat().st_mtime_ns for path in out.rglob("model.pt")}
    assert len(times) == 2
    again = CliRunner().invoke(app, words)
    assert (out / "compared" / "by-colab" / "beside.md").read_text(
        encoding="utf-8"
    ) in again.output + "\n"
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("model.pt")}


def test_the_whole_job_in_python(tmp_path: Path) -> None:
    """The verb prints what the function returns."""
    assert str(reproduce()).splitlines()[0].startswith("lits ")
    assert repr(reproduce("vs")) == "Reproduced(vs: described)"
    assert "vs_gk_seg_refT2" in str(reproduce("vs"))
    folder = vs(tmp_path / "download")
    done = reproduce("vs", folder, tmp_path / "out", partial=True, rows="none,dilated")
    assert done.arranged
    assert len(done.arranged.train) == 3
    assert (done.comparison, done.results) == (None, "")
    assert "--methods none=supervised" in done.command
    assert done.command in str(done)
    assert repr(done) == f"Reproduced(vs: arranged in '{tmp_path / 'out' / 'dataset'}')"
    with pytest.raises(ContextsegError, match="there is no such row"):
        reproduce("vs", folder, tmp_path / "out", partial=True, rows="nine")


def test_the_command_line_s_own_errors(tmp_path: Path) -> None:
    folder = vs(tmp_path / "download")
    assert "lits" in CliRunner().invoke(app, ["reproduce"]).output
    assert "vs_gk_seg_refT2" in CliRunner().invoke(app, ["reproduce", "vs"]).output
    nowhere = CliRunner().invoke(app, ["reproduce", "vs", str(folder)])
    assert isinstance(nowhere.exception, ContextsegError)
    assert "no folder to work in" in str(nowhere.exception)
    words = ["reproduce", "vs", str(folder), "-o", str(tmp_path / "out"), "--partial"]
    masks = CliRunner().invoke(app, [*words, "--masks", f"anatomy={tmp_path / 'none'}"])
    assert "there is no such folder of masks" in str(masks.exception)
    assert not (tmp_path / "out").exists()  # refused before anything is read
