"""How long a training is: chosen for a time, extended, ended early. No test measures real time."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch

import contextseg as cs
import laws
from contextseg import cli, length, longer, pipeline
from contextseg import training as loop
from contextseg.arguments import seconds_of
from contextseg.batch import Batch
from contextseg.console import progress_bar
from contextseg.data import phantom
from contextseg.data.layouts import open_dataset
from contextseg.disk import lock_folder, read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.length import Length, Punctuality, StepCost, WorkLeft, WorkTime, fit
from contextseg.methods import METHODS, workload_of
from contextseg.pipeline import open_predictor, run_pipeline, train_run
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.stopping import FINISH, STOP, Stopped, StopRequest
from contextseg.studies.compare.grid import cells, parse_grid
from contextseg.training import Training, train
from contextseg.training_log import log_rows
from systems import needs_locks

torch.set_num_threads(1)

TINY = (
    "patch_vox=16,16,16",
    "base_width=4",
    "max_levels=2",
    "batch_size=2",
    "save_every=100",
    "log_every=2",
    "device=cpu",
    "prediction.mirror=false",
)
SLOW = ("pseudo", "cmu-pretrain")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("length") / "data"
    return phantom.write_dataset(folder, labelled=3, unlabelled=1, test=1)


def settings(data: Path, method: str, *words: str) -> Settings:
    own = ("objects=1", "patch_vox=16,16") if method == "stcn" else ()
    own += ("dims=2",) if method == "stcn" else ()
    return Settings(str(data), method).set([*TINY, *own, *words])


def weights(folder: Path, training: int = 1) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"train-{training}" / "model.pt", weights_only=True)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def go(run: Run) -> None:
    """All of a run's job."""
    if run.guided:
        train_run(run)
    else:
        run_pipeline(run)


def stop_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """From now on, a signal comes in the step of that number, counted over all trainings."""
    real, count = loop.training_step, [0]

    def counting(*args: object, **more: object) -> object:
        count[0] += 1
        if count[0] == steps:
            signal.raise_signal(signal.SIGTERM)
        return real(*args, **more)  # type: ignore[arg-type]

    patch.setattr(loop, "training_step", counting)


def interrupted(steps: int, run: Run, match: str = "stopped") -> None:
    """Train a run, until a signal stops it after so many steps."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(steps, patch)
        with pytest.raises(Stopped, match=match):
            train_run(run)


def last_training(folder: Path) -> int:
    return max(int(path.name[6:]) for path in folder.glob("train-*"))


# --- a time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90s", 90),
        ("45m", 2700),
        ("2h", 7200),
        ("1h30m", 5400),
        (" 1 D ", 86400),
        ("1.5h", 5400),
        (90, 90),
        ("", 0),
    ],
)
def test_times_as_people_write_them(time: str | float, seconds: float) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize("time", ["2", "2hours", "h", "30m1h", "-1h", "0s", "soon", -3.0])
def test_what_is_no_time_is_told_how_to_write_one(time: str | float) -> None:
    with pytest.raises(ContextsegError, match="1h30m"):
        seconds_of(time)


def test_steps_and_a_time_are_two_lengths(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ContextsegError, match="give one of the two"):
        cs.train(data, tmp_path / "run", time="1h", steps=9)
    assert not (tmp_path / "run").exists()


def test_a_length_is_what_the_time_leaves() -> None:
    """1000 s, 5 % kept back, 50 s spent, 100 windows of 1 s; each of 2 trainings gets half."""
    cost = StepCost(step_s=2.0, window_s=1.0, steps=3)
    work = WorkLeft(trainings=2, windows=100)
    assert fit(1000, 50, work, cost).steps == (950 - 50 - 100) // 2 // 2
    assert fit(1000, 50, WorkLeft(checks=0.5), cost).steps == int(900 / 2.5)
    with pytest.raises(ContextsegError, match=r"no time is left to train.*--time 6m"):
        fit(60, 50, WorkLeft(windows=50), cost)


class Clock:
    """A clock that is asked, and never waits: each time it is read, so many seconds are over."""

    def __init__(self, tick: float) -> None:
        self.tick = tick
        self.now = 0.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    ticking = Clock(1.0)
    monkeypatch.setattr(length, "clock", ticking)
    return ticking


def timed(data: Path, folder: Path, time_s: float, method: str = "supervised") -> Run:
    run = Run(folder, settings(data, method, f"time_s={time_s}"))
    train_run(run)
    return run


def test_a_smaller_time_is_a_shorter_training(data: Path, tmp_path: Path, clock: Clock) -> None:
    steps = []
    for seconds in (20, 60):
        run = timed(data, tmp_path / f"{seconds}", seconds)
        chosen = run.lengths()["train-1"]
        assert chosen.measured["step_s"] == 1.0
        assert chosen.measured["time_s"] == seconds
        assert chosen.steps + chosen.measured["spent_s"] <= 0.95 * seconds
        steps.append(chosen.steps)
    assert 0 < steps[0] < steps[1] - 30


def test_a_chosen_length_is_kept_and_is_that_number_of_steps(
    data: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring leaves no trace; a slower clock, when it goes on, changes nothing."""
    run = tmp_path / "run"
    real = length.step_cost

    def then_stop(*args: object) -> StepCost:
        cost = real(*args)  # type: ignore[arg-type]
        stop_after(2, monkeypatch)
        return cost

    with monkeypatch.context() as patch:
        patch.setattr(length, "step_cost", then_stop)
        with pytest.raises(Stopped):
            timed(data, run, 20)
    monkeypatch.undo()
    monkeypatch.setattr(length, "clock", clock)
    chosen = Run.open(run).lengths()["train-1"]
    clock.tick = 100.0
    timed(data, run, 20)
    assert Run.open(run).lengths()["train-1"] == chosen
    given = tmp_path / "given"
    train_run(Run(given, settings(data, "supervised", f"steps={chosen.steps}")))
    assert same(weights(run), weights(given))
    train_run(Run(run, settings(data, "supervised")))  # without the time: the length it has
    with pytest.raises(ContextsegError, match=r"time_s was 20\.0 and is now 30\.0.*--extend"):
        timed(data, run, 30)


def test_a_time_that_was_too_short_may_be_given_anew(
    data: Path, tmp_path: Path, clock: Clock
) -> None:
    with pytest.raises(ContextsegError, match="no time is left"):
        timed(data, tmp_path, 3)
    assert timed(data, tmp_path, 40).lengths()["train-1"].steps > 1


def test_without_a_gpu_the_default_ends_and_is_said_first(
    data: Path, tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.tick = 500.0
    run = Run(tmp_path, settings(data, "supervised"), progress_bar)
    train_run(run)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("no GPU is used: the run is to take 2.0 h in all")
    assert "--time 8h, or --set steps=20000" in lines[0]
    steps = run.lengths()["train-1"].steps
    assert 0 < steps < 7200 / 500
    assert any(line.startswith(f"train-1: {steps} steps of 500 s") for line in lines)
    assert length.asked_seconds(Training(), torch.device("cuda")) == 0
    assert read_json(tmp_path / "run.json")["settings"]["training"]["steps"] == 0


def test_a_training_that_falls_behind_says_so_once(clock: Clock) -> None:
    clock.tick = 0.0
    facts = {"time_s": 1000.0, "step_s": 1.0, "after_s": 50.0, "trainings": 1.0}
    late = Punctuality(Length(900, 900, measured=facts), WorkTime())
    said = []
    for step in range(900):
        clock.now += 1.0 if step < 300 else 2.0
        if sentence := late.late(step):
            said.append((step, sentence))
    assert len(said) in (1, 2)
    assert said[0][0] > 300
    assert "contextseg finish" in said[0][1]


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_trains_no_more_often_than_it_says(name: str) -> None:
    """Of phantoms, in which each of three rounds of `pseudo` finds something new."""
    arguments = {"models": 2, "rounds": 3} if name == "pseudo" else {}
    work = workload_of(name, arguments)
    assert 1 <= work.segments_from <= work.trainings
    assert (work.trainings > 1) == (name in SLOW)


def test_runs_of_a_comparison_share_the_time(data: Path, tmp_path: Path) -> None:
    grid = parse_grid(data, tmp_path, ["a=supervised;b=cps"], seeds="0,1", time_s=1200)
    each = cells(grid, open_dataset(data))
    assert {cell.settings.training.time_s for cell in each} == {300}
    Run(each[0].folder, each[0].settings)
    more = parse_grid(data, tmp_path, ["a=supervised;b=cps"], seeds="0,1,2", time_s=1200)
    shares = [cell.settings.training.time_s for cell in cells(more, open_dataset(data))]
    assert shares == [300, 200, 200, 200, 200, 200]


# --- stopped, finished, extended: laws over the registry ------------------------------------------


def costly(*names: str) -> list[object]:
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in names else []) for name in METHODS
    ]


@pytest.mark.parametrize("name", costly(*SLOW))
def test_finish_uses_what_is_trained_and_extend_goes_on_as_if_nothing_was(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "supervised":
        monkeypatch.setattr(pipeline, "report", lambda *_: None)  # drawing takes most of the time
    whole, run = tmp_path / "whole", tmp_path / "run"
    asked = settings(data, name, "steps=4")
    train_run(Run(whole, asked))
    last = last_training(whole)
    before = 4 * (workload_of(name, {}).segments_from - 1)
    interrupted(before + 2, Run(run, asked), "step 2 of 4")
    outcome = longer.finish(run)
    ended = last_training(run)
    chosen = Run.open(run).lengths()[f"train-{ended}"]
    assert (chosen.until, chosen.steps, chosen.why) == (2, 4, "finish")
    if outcome is not None:
        assert len(outcome.metrics) == 1
    if outcome is not None and name == "supervised":
        assert outcome.report is not None
        page = outcome.report.read_text(encoding="utf-8")
        assert "was stopped early on request, at step 2 of 4" in page
    if outcome is not None:
        model = open_predictor([run]).members[0].method.state_dict()
        stopped = weights(run, ended)
        assert all(torch.equal(model[n], stopped[n]) for n in stopped)
        assert not same(stopped, weights(whole, ended))
    longer.extend(run, asked, asked=True)
    go(Run(run, asked))
    assert last_training(run) == last
    assert all(same(weights(run, i), weights(whole, i)) for i in range(1, last + 1))
    if outcome is not None:
        assert (run / "before" / "step-2" / "evaluate" / "metrics.csv").exists()
    if name == "supervised":
        assert (run / "before" / "step-2" / "report.html").exists()
        assert "stopped early" not in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", costly(*SLOW))
def test_an_extension_that_is_interrupted_is_the_same(
    name: str, data: Path, tmp_path: Path
) -> None:
    first, longest = settings(data, name, "steps=3"), settings(data, name, "steps=6")
    one, two = tmp_path / "one", tmp_path / "two"
    train_run(Run(one, first))
    last = last_training(one)
    before = weights(one, last)
    shutil.copytree(one, two)
    longer.extend(one, longest)
    train_run(Run(one, longest))
    assert Run(one, longest).lengths()[f"train-{last}"].before == ((3, 3),)
    assert same(torch.load(one / "before/step-3/model.pt", weights_only=True), before)
    assert not same(weights(one, last), before)

    longer.extend(two, longest)
    interrupted(2, Run(two, longest), "step 5 of 6")
    longer.extend(two, longest)  # the same command again
    train_run(Run(two, longest))
    assert same(weights(one, last), weights(two, last))
    with pytest.raises(ContextsegError, match=r"steps was 6 and is now 3"):
        Run(two, first)


def test_the_learning_rate_of_an_extension_is_that_of_the_new_length(
    data: Path, tmp_path: Path
) -> None:
    """5e-3 (1 - step / steps)^0.9; AdamW stays, though 6000 steps alone would be SGD."""
    words = ("log_every=1", "check_every=0")
    train_run(Run(tmp_path, settings(data, "supervised", "steps=2", *words)))
    asked = settings(data, "supervised", "steps=6000", *words)
    longer.extend(tmp_path, asked)
    interrupted(2, Run(tmp_path, asked))
    rows = log_rows(tmp_path / "train-1" / "log.jsonl")
    rates = [
        5e-3 * (1 - step / steps) ** 0.9 for step, steps in ((0, 2), (1, 2), (2, 6e3), (3, 6e3))
    ]
    assert [row["lr"] for row in rows] == pytest.approx(rates)


def test_a_stopped_training_predicts_and_says_that_it_is_not_finished(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = settings(data, "supervised", "steps=4000")
    interrupted(3, Run(tmp_path, asked), "contextseg finish")
    made = cs.load(tmp_path).predict_folder(data / "imagesTs", tmp_path / "out")
    assert all(path.exists() for path in made.values())
    assert "is not finished: its model of step 3 of 4000 is used" in capsys.readouterr().err


def test_more_time_extends_by_what_a_step_took(data: Path, tmp_path: Path, clock: Clock) -> None:
    timed(data, tmp_path, 20)
    first = Run.open(tmp_path).lengths()["train-1"].steps
    asked = settings(data, "supervised", "time_s=5000")
    with pytest.raises(ContextsegError, match="is now 5000"):
        Run(tmp_path, asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(longer, "log_rows", lambda path: [{"step": 10, "seconds": 4000.0}])
        longer.extend(tmp_path, asked, asked=True)
    new = Run(tmp_path, asked).lengths()["train-1"]
    assert new.before == ((first, first),)
    assert new.steps - first == 11  # of (4750 s - the few that it took) at 400 s a step
    longer.extend(tmp_path, asked, asked=True)  # the same command again
    assert Run(tmp_path, asked).lengths()["train-1"] == new


def test_what_cannot_be_finished_or_extended_is_one_message(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ContextsegError, match="there is no run in this folder"):
        cs.finish(tmp_path / "nothing")
    with pytest.raises(ContextsegError, match="leave out --extend"):
        cs.train(data, tmp_path / "new", extend=True)
    run = Run(tmp_path / "run", settings(data, "supervised", "steps=4"))
    run.check()
    with pytest.raises(ContextsegError, match="no training in this folder has a checkpoint"):
        cs.finish(tmp_path / "run")


@needs_locks
def test_finish_asks_the_process_that_is_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_run(Run(tmp_path, settings(data, "supervised", "steps=2")))
    with lock_folder(tmp_path):
        with pytest.raises(ContextsegError, match="another process works in this folder"):
            cs.finish(tmp_path)
        (tmp_path / "train-1" / "done.json").unlink()
        assert cs.finish(tmp_path) is None
    assert (tmp_path / "train-1" / "finish").exists()
    assert "ends its training" in capsys.readouterr().err


# --- early stopping -------------------------------------------------------------------------------


def validated(monkeypatch: pytest.MonkeyPatch, dice: list[float]) -> None:
    """From now on, validations give these numbers, by step from 1."""

    def given(method: object, batch_at: object, batches: int) -> dict[str, float]:
        step = int(method.step)  # type: ignore[attr-defined]
        return {"seg": 1.0, "dice": dice[step - 1]}

    monkeypatch.setattr(loop, "validate", given)


def counted(folder: Path, stop: int = 0, **words: int) -> tuple[loop.Ending, dict]:
    """Train with a validation after each step; a weight that counts them says which is kept."""
    method = laws.make("supervised", dims=2)
    method.register_buffer("step", torch.zeros(()))
    real = method.forward

    def counting(batch: Batch) -> dict[str, torch.Tensor]:
        method.step += 1
        if method.step == stop:
            signal.raise_signal(signal.SIGTERM)
        return real(batch)

    method.forward = counting  # type: ignore[method-assign]
    folder.mkdir(exist_ok=True)
    training = Training(
        steps=6, lr=0.01, device="cpu", check_every=1, early_stopping=2, save_every=100
    )

    def at(n: int, *rest: object) -> Batch:
        return laws.batch(n, dims=2)

    ending = train(method, at, folder, training, batch_size=4, check_at=at, **words)
    return ending, torch.load(folder / "model.pt", weights_only=True)


def test_early_stopping_keeps_the_best_and_is_the_same_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated(monkeypatch, [0.2, 0.5, 0.4, 0.5, 0.9, 0.9])
    ending, model = counted(tmp_path / "whole")
    assert (ending.step, ending.why) == (4, "early stopping")
    assert model["step"] == 2
    assert torch.load(tmp_path / "whole" / "last.pt", weights_only=True)["step"] == 4
    with pytest.raises(Stopped):
        counted(tmp_path / "part", stop=3)
    assert counted(tmp_path / "part")[0] == ending
    assert same(model, torch.load(tmp_path / "part" / "model.pt", weights_only=True))

    ending, model = counted(tmp_path / "whole", since=4)  # extended
    assert (ending.step, ending.why) == (6, "")
    assert model["step"] == 5


def test_early_stopping_needs_validation(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ContextsegError, match="give 0, for never, or more"):
        Training(early_stopping=-1)
    with pytest.raises(ContextsegError, match="--fold 0"):
        train_run(Run(tmp_path, settings(data, "supervised", "steps=2", "early_stopping=3")))


# --- the loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["twice", "file"])
def test_asked_to_finish_a_training_ends_with_its_model(how: str, tmp_path: Path) -> None:
    def at(n: int, *rest: object) -> Batch:
        if n == 2 and how == "twice":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        if n == 2 and how == "file":
            (tmp_path / "finish").touch()
        return laws.batch(n, dims=2)

    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell began this in the background
    method = laws.make("supervised", dims=2)
    steps = Training(steps=5, lr=0.01, device="cpu")
    ending = train(method, at, tmp_path, steps, batch_size=4)
    assert (ending.step, ending.why) == (3, "finish")
    assert same(torch.load(tmp_path / "model.pt", weights_only=True), method.state_dict())
    assert not (tmp_path / "finish").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_request_grows_with_each_interrupt() -> None:
    before = signal.getsignal(signal.SIGINT)
    request = StopRequest()
    request(signal.SIGTERM, None)
    request(signal.SIGINT, None)
    assert request.level == STOP
    request(signal.SIGINT, None)
    assert request.level == FINISH
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_verb_finish_shows_the_scores(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(2, Run(tmp_path, settings(data, "supervised", "steps=4")))
    cli.app(["finish", str(tmp_path)], standalone_mode=False)
    out = capsys.readouterr()
    assert "metrics.csv" in out.out
    assert "train-1" in out.err


# --- what is written of a length ------------------------------------------------------------------


def test_a_length_of_another_version_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "length.json", {"steps": 9, "first": 8, "of a later version": [1]})
    assert Length.load(tmp_path) == Length(9, 8)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"first": -1}, {"until": 10}, {"until": -1}])
def test_no_length_is_one_message(tmp_path: Path, wrong: dict[str, int]) -> None:
    write_json(tmp_path / "length.json", {"steps": 9, "first": 9, **wrong})
    with pytest.raises(ContextsegError, match=r"length\.json: no length"):
        Length.load(tmp_path)
