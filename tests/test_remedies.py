"""Remedies work: what they name exists, and the situations below are mended by following them."""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import os
import re
import shutil
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer

import contextseg as cs
from contextseg import cli
from contextseg.data import phantom
from contextseg.methods import METHODS
from contextseg.settings import ALIASES, Settings, names
from contextseg.volume import read_labels, write

SOURCE = Path(cs.__file__).parent
VERB = re.compile(r"\bcontextseg ((?:project )?[a-z][a-z-]*)((?: +[^`;,.()]*)?)")
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*)\b")
SETTING = re.compile(r"--set (?:\w+\.)?(\w+)=")
SCRIPTS = {"propagation/network/training.py"}  # with options of their own
FOREIGN = {"raw", "ml", "c", "nproc-per-node", "version"}
"""Options of gdcmconv, TotalSegmentator, nnU-Net and torchrun, and the one of no verb."""


# --- what is named exists -------------------------------------------------------------------------


def texts() -> Iterator[tuple[str, str]]:
    """Every text of the source that a person may see: (file, text), "{}" for what is filled in."""
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
        inside |= {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            text = text_of(node)
            if text and id(node) not in inside and place not in SCRIPTS and "style=" not in text:
                yield place, text


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(v) or "{}" for v in node.values)
    return ""


def commands() -> dict[str, click.Command]:
    """Every command of the command line by its words, such as "project begin"."""
    group = typer.main.get_command(cli.app)
    group = typing.cast(click.Group, group)
    found = dict(group.commands)
    project = found["project"]
    project = typing.cast(click.Group, project)
    return found | {f"project {name}": command for name, command in project.commands.items()}


def options_of(command: click.Command) -> set[str]:
    words = {word for p in command.params for word in (*p.opts, *p.secondary_opts)}
    return {word.removeprefix("--") for word in words if word.startswith("--")} | {"help"}


def test_every_command_and_option_that_a_text_names_exists() -> None:
    known = commands()
    every = set().union(*map(options_of, known.values())) | FOREIGN
    wrong = []
    count = 0
    for place, text in texts():
        for verb, rest in VERB.findall(text):
            called = verb if verb in known else verb.split()[0]
            if f"contextseg {verb}" in ("contextseg model", "contextseg network"):
                continue  # the names of two formats
            if f"`contextseg {verb}" in text or called in known:
                count += 1
                if called not in known:
                    wrong.append((place, text))
                    continue
                own = options_of(known[called]) | FOREIGN
                if called == "project":
                    own = every
                stop = rest.split(" contextseg ")[0]
                if not set(OPTION.findall(stop)) <= own:
                    wrong.append((place, text))
        if not text.lstrip().startswith("--") or " " in text:
            count += 1
            if not set(OPTION.findall(text)) <= every:
                wrong.append((place, text))
    assert wrong == []
    assert count > 100


def test_every_setting_that_a_text_sets_exists() -> None:
    known = {name.split(".")[1] for method in METHODS for name in names(method)} | set(ALIASES)
    used = [(place, n) for place, text in texts() for n in SETTING.findall(text)]
    assert len(used) > 15
    assert [(place, n) for place, n in used if n not in known | {"name", "epochs", "NAME"}] == []


def remedies() -> Iterator[tuple[str, str]]:
    """The third argument of every `ContextsegError` in the source, where it is a text there.

    Also texts that are assigned to `remedy` or a name that ends so.
    """
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            texts_here: list[str] = []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ContextsegError":
                texts_here = [text_of(a) for a in node.args[2:3]]
            elif isinstance(node, ast.Assign):
                targets = [getattr(t, "id", "").lower() for t in node.targets]
                if any(name.endswith("remedy") for name in targets):
                    texts_here = [text_of(node.value)]
            yield from ((place, text) for text in texts_here if text)


def test_every_word_with_an_underscore_in_a_remedy_is_a_name() -> None:
    """A setting, an argument of the face, or something that the table below says what it is."""
    known = {name.split(".")[1] for method in METHODS for name in names(method)}
    known |= set(inspect.signature(Settings).parameters)
    for name in cs.__all__:
        if inspect.isfunction(function := getattr(cs, name)):
            known |= set(inspect.signature(function).parameters)
    others = {
        "nnUNetv2_train",  # names, files and fields of others
        "fold_0",
        "splits_final",
        "rescale_to_0_1",
        "label_colors",
        "nnUNet_raw",
        *("network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes"),
        *("channel_names", "label_info", "state_dict"),
    }
    count = 0
    wrong = []
    for place, text in remedies():
        count += 1
        for word in re.findall(r"(?<![\w./{])[A-Za-z]\w*_\w+(?![\w(])", text):
            if word not in known | others:
                wrong.append((place, word))
    assert wrong == []
    assert count > 300


def test_remedies_are_imperatives_without_a_full_stop() -> None:
    wrong = [(place, text) for place, text in remedies() if text.rstrip().endswith(".")]
    assert wrong == []


COUNTS = re.compile(
    r"(?<!of )\{\} (?:[a-z]+ )?(?:cases|scans|files|runs|folds|patients|channels|classes|seeds|"
    r"slices|structures|methods|models|steps|threads|parts|references|predictions|errors)\b"
)
NEVER_ONE = (  # counts that cannot be one there, and what is no count
    *("Try {} context", "Keep {} context", "trained with {} context", "for {} folds"),
    *("the {} structures of {}", "The {} cases", "{} files are", "an epoch of nnU-Net is {}"),
    *("if {} steps are meant", "an estimate from {} steps", "{}: {} steps", "there are {} classes"),
    *("the volume has {} slices", "each with {} slices", "a label map with {} channels"),
    *("fold {} names cases", "between {} and {} the slices", "that {} files can hold"),
    *("{} channels and a box", "has {} values for {} channels", "Dice of {} locked test cases"),
    *("follows {} slices", "Each class by itself, {} slices", "{} steps in {}", "{}, {}: {} cases"),
    *("{} scans to train", "{} runs of each of", "this run's {} cases", "{} cases instead of {}"),
    *("{} slices to train", "has all its {} steps", "{} labelled and {} other scans"),
    *("{} scans, the challenge has {}", "({} steps each)", "{} scans in place of {}"),
    "{} files belong to no part",
    *("{} for predictions of shape", "has no room for {} references"),
)


def test_a_noun_agrees_with_its_count() -> None:
    """`errors.plural` counts: no "1 cases"."""
    counted = [(place, text) for place, text in texts() if COUNTS.search(text)]
    wrong = [row for row in counted if not any(part in row[1] for part in NEVER_ONE)]
    assert wrong == [("studies/cmunet/table.py", "{} scans")]  # three counts, 10 / 2 / 5


# --- and helps ------------------------------------------------------------------------------------

TINY = ["steps=2", "patch_vox=8,8,8", "batch_size=2", "base_width=4", "max_levels=2", "device=cpu"]
SET = [word for setting in TINY for word in ("--set", setting)]


@dataclass(frozen=True)
class Desk:
    """What a situation finds: a data set, a finished run of it, and an empty folder."""

    data: Path
    run: Path
    here: Path

    def copy_of_data(self) -> Path:
        shutil.copytree(self.data, self.here / "data")
        return self.here / "data"

    def copy_of_run(self) -> Path:
        shutil.copytree(self.run, self.here / "copied")
        return self.here / "copied"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remedies") / "data"
    return phantom.write_dataset(folder, labelled=2, test=1, shape=(12, 14, 14))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remedies") / "run"
    assert call("train", data, "-o", folder, *SET) == ""
    return folder


def call(*words: object) -> str:
    """The command line, in this process: the message of its error, or ""."""
    try:
        code = cli.app([str(word) for word in words], standalone_mode=False)
    except cs.ContextsegError as error:
        return str(error)
    return f"exit code {code}" if code else ""


Steps = Callable[[Desk], Iterator[tuple[list[Any], str]]]
SITUATIONS: dict[str, Steps] = {}


def situation(function: Steps) -> Steps:
    """A generator of commands, each with a pattern of the message that it must end with; "" for
    success.
    """
    SITUATIONS[function.__name__.strip("_")] = function
    return function


def train(desk: Desk, *more: object, out: str = "run", data: Path | None = None) -> list[Any]:
    return ["train", data or desk.data, "-o", desk.here / out, *SET, *more]


def predict(desk: Desk, *more: object, out: str = "out", run: Path | None = None) -> list[Any]:
    return ["predict", run or desk.run, "-i", desk.data / "imagesTs", "-o", desk.here / out, *more]


@situation
def _a_misspelt_setting(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield train(desk, "--set", "stesp=3"), r"did you mean step or steps\?"
    yield train(desk, "--set", "steps=3"), ""


@situation
def _a_setting_that_is_an_option(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield train(desk, "--set", "seed=3"), r"leave out --set: --seed 3"
    yield train(desk, "--seed", "3"), ""


@situation
def _a_setting_without_its_value(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield train(desk, "--set", "seed"), r"write --set name=value"
    yield train(desk, "--set", "log_every=1"), ""


@situation
def _epochs(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield ["plan", desk.data, "--set", "epochs=2"], r"leave it out"
    yield ["plan", desk.data, "-o", desk.here / "plan.json"], ""


@situation
def _a_misspelt_method(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield train(desk, "--method", "supervized"), r"did you mean supervised\?"
    yield train(desk, "--method", "supervised"), ""


@situation
def _a_class_of_the_roi_that_is_not_there(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield train(desk, "--roi", "brigth"), r"did you mean bright\?"
    yield train(desk, "--roi", "bright"), ""


@situation
def _more_folds_than_patients(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield train(desk, "--fold", "0"), r"use --fold all"
    yield train(desk, "--fold", "all"), ""


@situation
def _a_fold_that_is_no_number(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield train(desk, "--fold", "first"), r"give 0 to 4, all, or auto"
    yield train(desk, "--fold", "auto"), ""


@situation
def _a_fold_and_folds(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    command = ["run", desk.data, "-o", desk.here / "run", *SET, "--fold", "all"]
    yield [*command, "--folds", "0,1"], r"give one of the two"
    yield command, ""


@situation
def _a_negative_seed(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield train(desk, "--seed", "-1"), r"give 0 or more"
    yield train(desk, "--seed", "0"), ""


@situation
def _a_spacing_of_two_numbers(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield train(desk, "--set", "spacing_mm=2,2"), r"give 3 positive numbers"
    yield train(desk, "--set", "spacing_mm=4,4,4", out="other"), ""


@situation
def _a_context_and_a_method(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    words = ["--method", "cps", "--context", "kmeans"]
    yield train(desk, *words), r"give one of the two"
    yield train(desk, *words[2:]), ""


@situation
def _a_device_that_is_not_here(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield train(desk, "--set", "device=gpu7"), r"choose cpu, or auto"
    yield train(desk, "--set", "device=cpu"), ""


@situation
def _a_folder_with_another_run(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield train(desk), ""
    yield train(desk, "--seed", "1"), r"choose another --output folder"
    yield train(desk, "--seed", "1", out="other"), ""


@situation
def _weights_that_are_not_there(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield train(desk, "--init", desk.here / "nowhere"), r"check the path"
    yield train(desk, "--init", desk.run, out="other"), ""


@situation
def _a_truncated_scan(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    data = desk.copy_of_data()
    path = sorted((data / "imagesTr").glob("*.nii.gz"))[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    yield train(desk, data=data), rf"`contextseg check {re.escape(str(data))}` lists every problem"
    yield ["check", data], "exit code 1"
    path.write_bytes(whole)  # copied again
    yield ["check", data], ""
    yield train(desk, data=data), ""


@situation
def _a_data_set_without_labels(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    data = desk.copy_of_data()
    (data / "labelsTr").rename(desk.here / "labels")
    yield train(desk, data=data), r"put label files into the labels folder, called like their"
    shutil.copytree(desk.here / "labels", data / "labelsTr", dirs_exist_ok=True)
    yield train(desk, data=data), ""


@situation
def _labels_that_are_all_empty(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    data = desk.copy_of_data()
    for path in (data / "labelsTr").glob("*.nii.gz"):
        label = read_labels(path)
        write(path, label.with_array(np.zeros_like(label.array)))
    yield train(desk, data=data), r"label a case with a class"
    shutil.copytree(desk.data / "labelsTr", data / "labelsTr", dirs_exist_ok=True)
    yield train(desk, data=data), ""


@situation
def _a_value_that_is_not_in_the_label_table(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    data = desk.copy_of_data()
    table = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    other = {**table, "labels": {"background": 0, "bright": 7}}
    (data / "dataset.json").write_text(json.dumps(other), encoding="utf-8")
    yield train(desk, data=data), r"not in the label table"
    (data / "dataset.json").write_text(json.dumps(table), encoding="utf-8")
    yield train(desk, data=data), ""


@situation
def _an_edited_plan_that_cannot_be(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    path = desk.here / "plan.json"
    planning = [word for s in TINY[1:5] for word in ("--set", s)]
    yield ["plan", desk.data, "-o", path, *planning], ""
    plan = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**plan, "batch_size": -1}), encoding="utf-8")
    yield train(desk, "--plan", path), r"make it again with `contextseg plan`"
    yield ["plan", desk.data, "-o", path, *planning], ""
    yield train(desk, "--plan", path), ""


@situation
def _a_damaged_preprocessed_file(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    run = desk.copy_of_run()
    shutil.rmtree(run / "train-1")
    for path in (run / "cache").glob("*/image.npy"):
        path.write_bytes(path.read_bytes()[:50])
    yield train(desk, out="copied"), r"delete the run's folder of the stage `preprocess`"
    shutil.rmtree(run / "preprocess")
    yield train(desk, out="copied"), ""


@situation
def _a_stage_that_is_not_finished(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    run = desk.copy_of_run()
    shutil.rmtree(run / "train-1")
    yield predict(desk, run=run), r"give `contextseg train` the same --output; it goes on"
    yield train(desk, out="copied"), ""
    yield predict(desk, run=run), ""


@situation
def _a_folder_without_a_run(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield predict(desk, run=desk.here), r"give the --output folder of `contextseg train`"
    yield predict(desk), ""


@situation
def _a_part_that_is_none(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield predict(desk, "--part", "5/4"), r"write 1/4 for the first of four parts"
    yield predict(desk, "--part", "1/4"), ""


@situation
def _a_class_that_is_not_there(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield predict(desk, "--classes", "brigth"), r"did you mean bright\?"
    yield predict(desk, "--classes", "bright"), ""


@situation
def _contexts_of_a_method_without(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield predict(desk, "--save-contexts"), r"leave it out, or train with --context colab"
    yield predict(desk), ""


@situation
def _a_setting_of_training_in_predict(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield predict(desk, "--set", "lr=0.1"), r"leave it out"
    yield predict(desk), ""


@situation
def _too_little_memory_for_a_scan(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield predict(desk, "--set", "memory_gb=0.00001"), r"raise memory_gb \(0 is what the machine"
    yield predict(desk, "--set", "memory_gb=0"), ""


@situation
def _the_folder_of_the_scans(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    scans = desk.copy_of_data() / "imagesTs"
    command = ["predict", desk.run, "-i", scans, "-o"]
    yield [*command, scans], r"choose a folder of its own for the predictions"
    yield [*command, desk.here / "out"], ""


@situation
def _predictions_of_other_settings(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield predict(desk), ""
    other = ["--set", "prediction.mirror=false"]
    yield predict(desk, *other), r"choose another --output folder"
    yield predict(desk, *other, out="other"), ""


@situation
def _a_series_of_a_file(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield predict(desk, "--series", "2"), r"leave it out, or give the folder"
    yield predict(desk), ""


@situation
def _an_ending_of_no_model(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    yield ["export", desk.run, desk.here / "model.tar"], r"end in \.zip, \.onnx or \.pt2"
    yield ["export", desk.run, desk.here / "model.zip"], ""


@situation
def _a_run_that_was_not_evaluated(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    run = desk.copy_of_run()
    yield ["report", run], r"finish it with `contextseg run`"
    yield ["run", desk.data, "-o", run, *SET], ""
    yield ["report", run], ""


@situation
def _a_misspelt_convention(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    command = ["evaluate", desk.data / "labelsTs", desk.data / "labelsTs", "--convention"]
    yield [*command, "defualt"], r"did you mean default\?"
    yield [*command, "default"], ""


@situation
def _a_comparison_of_nothing(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    command = ["compare", desk.data, "-o", desk.here / "compared", "--dry-run", *SET]
    yield [*command, "--methods", ","], r"name methods, as in --methods supervised"
    yield [*command, "--methods", "supervised"], ""


@situation
def _a_misspelt_way_to_fill(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    scan = next((desk.data / "imagesTs").glob("*.nii.gz"))
    label = next((desk.data / "labelsTs").glob("*.nii.gz"))
    command = ["propagate", scan, "--labels", label, "-o", desk.here / "filled.nii.gz", "--way"]
    yield [*command, "nearst"], r"did you mean nearest\?"
    yield [*command, "nearest"], ""


@situation
def _the_output_is_the_scan(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    scan = next((desk.data / "imagesTs").glob("*.nii.gz"))
    label = next((desk.data / "labelsTs").glob("*.nii.gz"))
    command = ["propagate", scan, "--labels", label, "--way", "nearest", "-o"]
    yield [*command, scan], r"choose another --output file"
    yield [*command, desk.here / "filled.nii.gz"], ""


@situation
def _a_project_without_classes(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    command = ["project", "begin", desk.here / "work", "--scans", desk.data / "imagesTs"]
    yield command, r"name them: --classes tumour,liver"
    yield [*command, "--classes", "tumour,liver"], ""


@situation
def _one_model_to_choose_from(desk: Desk) -> Iterator[tuple[list[Any], str]]:
    command = ["ensemble", desk.run, "-o", desk.here / "best"]
    yield command, r"give two or more"
    message = r"train it with `contextseg run DATA -o OUTPUT --folds 0,1,2,3,4`"
    yield [*command, desk.run], message


@pytest.mark.parametrize("name", list(SITUATIONS))
def test_a_remedy_that_is_followed_helps(
    name: str,
    data: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, message in SITUATIONS[name](Desk(data, run, tmp_path)):
        said = call(*words)
        assert re.search(message, said) if message else said == "", (words, said)


def test_there_are_many_situations() -> None:
    assert len(SITUATIONS) >= 30


# --- folders that may not be entered --------------------------------------------------------------


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let nobody enter a folder, not even root: listing it, and whatever lies in it, fails."""

    def lock(folder: Path) -> None:
        inside = str(folder.resolve()) + os.sep

        def guarded(function: Any, listing: bool) -> Any:
            def inner(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
                if isinstance(path, str | os.PathLike):
                    place = os.path.abspath(path)
                    if place.startswith(inside) or (listing and place + os.sep == inside):
                        raise PermissionError(13, "Permission denied", str(path))
                return function(path, *args, **kwargs)

            return inner

        for module, name, listing in (
            (os, "scandir", True),
            (os, "listdir", True),
            (os, "stat", False),
            (os, "open", False),
            (builtins, "open", False),
        ):
            monkeypatch.setattr(module, name, guarded(getattr(module, name), listing))

    return lock


@pytest.mark.parametrize(
    ("place", "verb"),
    [
        ("data", "check"),
        ("data", "train"),
        ("data", "run"),
        ("data/imagesTr", "check"),
        ("data/labelsTr", "train"),
        ("data/imagesTs", "predict"),
        ("copied", "predict"),
        ("copied", "export"),
        ("copied", "report"),
        ("data/labelsTs", "evaluate"),
    ],
)
def test_a_folder_that_may_not_be_entered_is_one_message(
    place: str,
    verb: str,
    data: Path,
    run: Path,
    tmp_path: Path,
    locked: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    desk = Desk(data, run, tmp_path)
    copied, model = desk.copy_of_data(), desk.copy_of_run()
    out = tmp_path / "out"
    words: dict[str, list[Any]] = {
        "check": [copied],
        "train": [copied, "-o", out, *SET],
        "run": [copied, "-o", out, *SET],
        "predict": [model, "-i", copied / "imagesTs", "-o", out],
        "export": [model, tmp_path / "model.zip"],
        "report": [model],
        "evaluate": [copied / "labelsTs", copied / "labelsTs"],
    }
    locked(tmp_path / place)
    try:
        said = call(verb, *words[verb])
    except PermissionError as error:  # `main` makes a message of it
        assert error.filename  # noqa: PT017
        return
    if verb == "check":
        said += capsys.readouterr().out
    assert "ermission" in said
