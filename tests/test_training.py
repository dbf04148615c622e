"""The loop itself: schedules, logs, validation, what goes wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import laws
from contextseg.batch import IGNORE, Batch
from contextseg.errors import ContextsegError
from contextseg.methods import Method
from contextseg.training import Training, pick_device, train, validate

torch.set_num_threads(1)


class Line(Method):
    """y = w x, trained towards `label`: every step can be followed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.rates: list[float] = []
        self.weights: list[float] = []

    def optimizers(self, lr: float) -> dict[str, torch.optim.Optimizer]:
        self.optimizer = torch.optim.SGD([self.w], lr)
        return {"line": self.optimizer}

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.weights.append(float(self.w.detach()))
        return {"square": ((self.w * batch.image - batch.label) ** 2).mean()}

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(image), self.w * image], 1)


def ones(n: int, rank: int = 0, world: int = 1, device: object = "cpu") -> Batch:
    x = torch.ones(1, 1, 2)
    return Batch(
        x,
        torch.full((1, 2), 3),
        torch.ones(1, 4, dtype=torch.bool),
        torch.zeros(1, dtype=torch.long),
    )


def test_steps_are_what_a_hand_calculation_gives(tmp_path: Path) -> None:
    """loss (w - 3)^2, gradient 2 (w - 3), clipped to 4; lr 0.1 (1 - step / 4)^0.9."""
    method = Line()
    train(method, ones, tmp_path, Training(steps=4, lr=0.1, clip=4.0, log_every=2), batch_size=1)
    w, want, rates = 0.0, [], []
    for step in range(4):
        rate = 0.1 * (1 - step / 4) ** 0.9
        want.append(w)
        rates.append(rate)
        gradient = 2 * (w - 3)
        w -= rate * max(gradient, -4.0)
    assert method.weights == pytest.approx(want)
    assert method.rates == pytest.approx(rates)
    rows = [
        json.loads(line)
        for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    losses = [(w - 3) ** 2 for w in want]
    assert [row["square"] for row in rows] == pytest.approx(
        [sum(losses[:2]) / 2, sum(losses[2:]) / 2]
    )
    assert (tmp_path / "log.csv").read_text(encoding="utf-8").splitlines()[
        0
    ] == "step,part,seconds,lr,square"


def test_a_log_is_a_table(tmp_path: Path) -> None:
    """Rows of training and of validation share one table, in which a missing value is empty."""
    settings = Training(steps=2, lr=0.0001, log_every=1, check_every=2, check_batches=1)
    train(Line(), ones, tmp_path, settings, batch_size=1, check_at=ones)
    lines = (tmp_path / "log.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "step,part,seconds,lr,square,dice"
    assert [line.split(",")[:2] for line in lines[1:]] == [
        ["1", "train"],
        ["2", "train"],
        ["2", "check"],
    ]
    assert lines[1].endswith(",9.0,")
    assert lines[3].split(",")[3] == ""


def test_the_log_of_a_resumed_run_is_the_log_of_an_uninterrupted_one(tmp_path: Path) -> None:
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    settings = Training(steps=7, lr=0.1, log_every=3, save_every=2)
    train(Line(), ones, tmp_path / "whole", settings, batch_size=1)

    def stops(n: int, *rest: object) -> Batch:
        if n == 5 and not (tmp_path / "again").exists():
            (tmp_path / "again").write_text("", encoding="utf-8")
            raise KeyboardInterrupt
        return ones(n)

    for _ in range(2):
        try:
            train(Line(), stops, tmp_path / "part", settings, batch_size=1)
        except KeyboardInterrupt:
            with open(tmp_path / "part" / "log.jsonl", "a", encoding="utf-8") as file:
                file.write('{"step": 5, "half a li')  # killed while writing
    whole, part = (
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for name in ("whole", "part")
    )
    assert whole == part
    assert [row["step"] for row in part] == [3, 6, 7]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    def broken(n: int, *rest: object) -> Batch:
        return replace(ones(n), image=torch.full((1, 1, 2), torch.nan))

    with pytest.raises(ContextsegError, match="not finite at step 2"):
        train(Line(), broken, tmp_path, Training(steps=4, log_every=2), batch_size=1)
    assert not (tmp_path / "model.pt").exists()


def test_a_batch_without_items_changes_nothing(tmp_path: Path) -> None:
    method = Line()
    train(method, lambda n, *rest: ones(n).shard(1, 2), tmp_path, Training(steps=2), batch_size=1)
    assert float(method.w.detach()) == 0
    assert method.weights == []


def test_validation_counts_voxels_by_class() -> None:
    """Image 1 and w = 2 give class 1 everywhere; 2 of 6 voxels are class 1, one not annotated."""
    method = Line()
    with torch.no_grad():
        method.w.fill_(2.0)
    label = torch.tensor([[1, 1, 0, 0, 0, IGNORE]])
    batch = Batch(
        torch.ones(1, 1, 6),
        label,
        torch.ones(1, 2, dtype=torch.bool),
        torch.zeros(1, dtype=torch.long),
    )
    method.optimizers(1.0)
    row = validate(method, lambda n: batch, batches=3)
    assert row["dice"] == pytest.approx(2 * 2 / (5 + 2))
    assert method.training


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
class Scored(Line):
    """Its Dice in validation is 1, 0, 1, ... for the numbers of `good`."""

    def __init__(self, good: tuple[int, ...]) -> None:
        super().__init__()
        self.good = good

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        step = round(float(self.w.detach()) / 0.1)  # each step is clipped to 0.1
        right = torch.tensor([0.0, 0.0, 0.0, 1.0 if step in self.good else -1.0])
        return right.view(1, 4, 1).expand(1, 4, 2)


BEST = {"steps": 5, "lr": 0.1, "clip": 1.0, "keep": "best", "check_every": 1, "check_batches": 1}


@pytest.mark.parametrize(
    ("good", "want"), [((2, 4), 2), ((5,), 5), ((), 1)], ids=["first", "last", "none"]
)
def test_the_first_of_the_best_weights_is_kept_also_after_a_stop(
    good: tuple[int, ...], want: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scored, "decay", lambda self, done: 1.0)
    training = Training(**BEST, save_every=2)  # type: ignore[arg-type]
    weights = {}
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        folder.mkdir()

        def batches(n: int, *where: object, stop: bool = name == "stopped") -> Batch:
            if stop and n == 3:
                raise KeyboardInterrupt
            return ones(n)

        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                train(Scored(good), batches, folder, training, batch_size=1, check_at=ones)
        train(Scored(good), ones, folder, training, batch_size=1, check_at=ones)
        files = ("model.pt", "last.pt")
        loaded = [torch.load(folder / file, weights_only=True)["w"] for file in files]
        weights[name] = [round(float(w) / 0.1, 3) for w in loaded]
    assert weights["whole"] == [want, 5]
    assert weights["stopped"] == weights["whole"]


def test_the_best_weights_need_a_validation(tmp_path: Path) -> None:
    never = Training(keep="best", check_every=0)
    with pytest.raises(ContextsegError, match="--fold 0"):
        train(Line(), ones, tmp_path, never, batch_size=1, check_at=ones)
    with pytest.raises(ContextsegError, match="--fold 0"):
        train(Line(), ones, tmp_path, Training(keep="best"), batch_size=1)
    with pytest.raises(ContextsegError, match="keep=bets"):
        Training(keep="bets")


def test_a_full_disk_is_one_message_and_the_old_checkpoint_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(Line(), ones, tmp_path, Training(steps=2), batch_size=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(path: Path, content: object) -> None:
        with open("/dev/full", "wb") as file:
            file.write(content)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ContextsegError, match="the disk is full"):
        train(Line(), ones, tmp_path, Training(steps=4), batch_size=1)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_unknown_devices_are_named() -> None:
    with pytest.raises(ContextsegError, match="device=tpu9"):
        pick_device("tpu9")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimisers_by_name(optimizer: str, tmp_path: Path) -> None:
    method = laws.make("supervised", optimizer=optimizer)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    assert type(method.optimizers(0.1)["net"]) is kind
    with pytest.raises(ContextsegError, match="did you mean adamw"):
        laws.make("supervised", optimizer="adam").optimizers(0.1)
    with pytest.raises(ContextsegError, match="did you mean unet"):
        laws.make("supervised", net="unett")


def test_tensorboard_is_an_extra(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(Line(), ones, tmp_path, Training(steps=2, log_every=1, tensorboard=True), batch_size=1)
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_mixed_precision_learns_on_a_gpu(tmp_path: Path) -> None:
    def at(n: int, rank: int, world: int, device: torch.device) -> Batch:
        return laws.batch(n).to(device)

    method = laws.make("supervised")
    train(method, at, tmp_path, Training(steps=60, lr=0.1, device="cuda"), batch_size=4)
    rows = [
        json.loads(line)
        for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert rows[-1]["seg"] < rows[0]["seg"]
