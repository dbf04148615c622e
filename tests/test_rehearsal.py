"""What no method can do is said before a scan is read: words, numbers, devices, classes, paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import contextseg as cs
from contextseg import rehearsal
from contextseg.data import phantom
from contextseg.errors import ContextsegError
from contextseg.methods import METHODS
from contextseg.methods.base import build_net
from contextseg.nets import NETS
from contextseg.runs import Run
from contextseg.settings import Settings, defaults

WORDS = [
    (method, name)
    for method in METHODS
    for name, value in defaults(method).items()
    if isinstance(value, str) and not name.startswith("planning.")
]
"""Every setting of every method that is a word."""

WRONG = {
    "training.early_stopping": "3",  # of a training of all cases
    "prediction.largest_of": "bright,liver",
    "arguments.class_weights": "1,1,1",  # of two classes
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal") / "data"
    return phantom.write_dataset(folder, labelled=5, unlabelled=1, test=0, shape=(12, 16, 16))


def begun(folder: Path, data: Path, method: str, **texts: str) -> Run:
    settings = Settings(dataset=str(data), method=method, fold=-1)
    return Run(folder, settings.set([f"{name}={text}" for name, text in texts.items()]))


@pytest.mark.parametrize(
    ("method", "name", "text"),
    [(method, name, "yesterday") for method, name in WORDS]
    + [(m, name, text) for m in METHODS for name, text in WRONG.items() if name in defaults(m)],
)
def test_what_makes_no_sense_is_refused_before_a_scan_is_read(
    method: str, name: str, text: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ContextsegError) as caught:
        begun(tmp_path / "run", data, method, **{name: text}).check()
    assert name.split(".")[1] in str(caught.value), caught.value
    assert not list(tmp_path.glob("run/*/")), "a stage was begun"


@pytest.mark.parametrize("method", METHODS)
def test_a_rehearsal_goes_to_the_first_training_or_scan(
    method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    train = rehearsal._Rehearsed.train

    def counted(run: Any, *args: Any, **options: Any) -> Any:
        trained = train(run, *args, **options)
        ended.append("trained")
        return trained

    def asked(run: Any, name: str) -> Any:
        ended.append(name)
        raise rehearsal._Enough

    monkeypatch.setattr(rehearsal._Rehearsed, "train", counted)
    monkeypatch.setattr(rehearsal._Rehearsed, "__getattr__", asked)
    begun(tmp_path / "run", data, method).check()
    assert ended, "an error ended the rehearsal, so that it can find nothing"


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("dims", ["2", "3"])
def test_a_rehearsal_refuses_the_networks_that_the_training_would(
    net: str, dims: str, data: Path, tmp_path: Path
) -> None:
    plain = begun(tmp_path / "plain", data, "supervised", dims=dims)
    plain.check()
    plain.make_plan()
    refused = ""
    try:
        build_net(net, plain.plan)
    except ContextsegError as error:
        refused = str(error)
    run = begun(tmp_path / "run", data, "supervised", net=net, dims=dims)
    if refused:
        with pytest.raises(ContextsegError, match=re.escape(refused)):
            run.check()
    else:
        run.check()


def test_settings_that_were_refused_are_mended_in_the_same_folder(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ContextsegError, match="net=unett"):
        begun(tmp_path / "run", data, "supervised", net="unett").check()
    run = begun(tmp_path / "run", data, "supervised", net="unet")
    run.check()
    run = begun(tmp_path / "run", data, "colab", dims="2")
    assert not run.done("check"), "the check was of other settings"
    run.check()
    run.make_plan()
    with pytest.raises(ContextsegError, match="a run with other settings"):
        begun(tmp_path / "run", data, "colab", dims="3")


def test_a_comparison_refuses_before_its_first_training(data: Path, tmp_path: Path) -> None:
    methods = ["plain=supervised", "learnt=colab:meta=yesterday"]
    with pytest.raises(ContextsegError, match=r"^meta=yesterday: "):
        cs.compare(data, tmp_path / "compared", methods, folds="0", steps=1, verbose=False)
    assert not (tmp_path / "compared" / "runs").exists()
