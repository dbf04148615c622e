"""Laws that every method obeys. An entry in METHODS is tested without a test being written."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import laws
from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.losses import LOSSES
from contextseg.methods import METHODS, Method
from contextseg.settings import Settings
from contextseg.stopping import Stopped

torch.set_num_threads(1)
NAMES = [name for name, entry in METHODS.items() if not getattr(entry, "guided", False)]
"""A guided method (propagation) segments nothing by itself: tests/test_fill.py."""
every = pytest.mark.parametrize(
    ("name", "dims"), [(name, dims) for name in NAMES for dims in (2, 3)]
)
AGAIN = {"pseudo": "cps", "cmu-pretrain": "cmu"}
"""Recipes whose last model is another's: the longest laws run over them with `make test-slow`."""


def costly(*values: object) -> object:
    """One set of a law's arguments, the name first."""
    return pytest.param(*values, marks=[pytest.mark.slow] if values[0] in AGAIN else [])


def weights(method: Method) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "dims"), [costly(name, dims) for name in NAMES for dims in (2, 3)]
)
def test_learns(name: str, dims: int, tmp_path: Path) -> None:
    method = laws.train_briefly(
        laws.make(name, dims, seed=1), tmp_path, 100, dims, labelled=3, lr=0.1
    ).eval()
    b = laws.batch(10_000, dims=dims)
    with torch.no_grad():
        prediction = method.predict(b.image).argmax(1)
    known = b.label != IGNORE
    p, y = (prediction == 1) & known, b.label == 1
    assert 2 * (p & y).sum() / (p.sum() + y.sum()) > 0.7


@every
def test_every_trainable_parameter_moves(name: str, dims: int, tmp_path: Path) -> None:
    method = laws.make(name, dims)
    before = weights(method)
    laws.train_briefly(method, tmp_path, 2, dims)
    trainable = [n for n, p in method.named_parameters() if p.requires_grad]
    assert trainable
    assert [n for n in trainable if torch.equal(method.state_dict()[n], before[n])] == []


@every
def test_interrupted_equals_uninterrupted_bit_for_bit(
    name: str, dims: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(laws.train_briefly(laws.make(name, dims), tmp_path / "whole", 5, dims))
    real, seen = laws.batch, []

    def interrupting(n: int, *args: int, **kwargs: int) -> object:
        seen.append(n)
        if n == 3 and seen.count(3) == 1:
            raise KeyboardInterrupt  # as a kill would, between two checkpoints
        return real(n, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(laws, "batch", interrupting)
    with pytest.raises(KeyboardInterrupt):
        laws.train_briefly(laws.make(name, dims), tmp_path / "part", 5, dims, save_every=2)
    resumed = weights(
        laws.train_briefly(laws.make(name, dims, seed=99), tmp_path / "part", 5, dims, save_every=2)
    )
    assert seen == [0, 1, 2, 3, 2, 3, 4]
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


@every
def test_what_lies_under_ignore_changes_no_loss(name: str, dims: int) -> None:
    method = laws.make(name, dims)
    b = laws.batch(0, dims=dims)
    torch.manual_seed(0)
    some = {n: float(term.detach()) for n, term in method(b).items()}
    cut = copy.deepcopy(b)
    cut.label[:, -5:] = IGNORE
    torch.manual_seed(0)
    fewer = {n: float(term.detach()) for n, term in method(cut).items()}
    assert some != fewer  # less annotation does matter ...
    nothing = copy.deepcopy(b)
    nothing.label[:] = IGNORE
    losses = method(nothing)
    assert all(torch.isfinite(term) for term in losses.values())
    assert float(losses["seg"].detach()) == 0  # ... without any, the term is 0
    losses["seg"].backward()
    assert all(p.grad is None or float(p.grad.abs().max()) == 0 for p in method.parameters())


@pytest.mark.parametrize(("recipe", "other"), AGAIN.items())
def test_what_is_slow_is_another_methods_model_again(recipe: str, other: str) -> None:
    assert type(laws.make(recipe)) is type(laws.make(other))


def sgd(method: Method) -> Method:
    """Plain steps show the gradient itself; momentum, clipping or Adam would hide or amplify
    rounding.
    """
    groups = {
        n: [p for g in o.param_groups for p in g["params"]]
        for n, o in method.optimizers(0.1).items()
    }
    method.optimizers = lambda lr: {n: torch.optim.SGD(ps, 0.1) for n, ps in groups.items()}  # type: ignore[method-assign]
    return method


def one_rank_of_two(rank: int, name: str, dims: int, labelled: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    laws.train_briefly(sgd(laws.make(name, dims)), folder, 1, dims, labelled, clip=1e9)
    dist.barrier()  # neither leaves while the other still talks to it
    dist.destroy_process_group()
    os._exit(0)  # once in some thousand times a thread of torch aborts a process that ends


@pytest.mark.parametrize(
    ("labelled", "dims"), [(1, 3), (4, 2)]
)  # 1: one rank has annotation, the other none
@pytest.mark.parametrize("name", [costly(name) for name in NAMES])
def test_two_ranks_equal_one(name: str, labelled: int, dims: int, tmp_path: Path) -> None:
    before = weights(laws.make(name, dims))
    mp.spawn(one_rank_of_two, (name, dims, labelled, tmp_path), nprocs=2)
    two = torch.load(tmp_path / "model.pt", weights_only=True)
    one = weights(
        laws.train_briefly(
            sgd(laws.make(name, dims)), tmp_path / "one", 1, dims, labelled, clip=1e9
        )
    )
    moved = max(float((one[n] - before[n]).abs().max()) for n in one)
    assert max(float((one[n] - two[n]).abs().max()) for n in one) < 1e-4 * moved


@every
def test_predict_has_the_shape_of_its_input(name: str, dims: int) -> None:
    method = laws.make(name, dims).eval()
    for shape in ((16, 16, 16), (13, 9, 17), (5, 21, 8)):
        image = torch.randn(2, 1, *shape[-dims:])
        with torch.no_grad():
            z = method.predict(image)
        assert z.shape == (2, 3, *shape[-dims:])
        assert torch.isfinite(z).all()


@every
def test_state_survives_save_and_load(name: str, dims: int, tmp_path: Path) -> None:
    method = laws.train_briefly(laws.make(name, dims), tmp_path, 2, dims).eval()
    other = laws.make(name, dims, seed=5)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    image = laws.batch(3, dims=dims).image
    with torch.no_grad():
        assert torch.equal(method.predict(image), other.eval().predict(image))


@every
def test_asked_to_stop_it_stops_after_a_checkpoint(
    name: str, dims: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    real = laws.batch

    def terminated(n: int, *args: int, **kwargs: int) -> object:
        if n == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(n, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(laws, "batch", terminated)
    with pytest.raises(Stopped):
        laws.train_briefly(laws.make(name, dims), tmp_path, 5, dims)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3
    assert not (tmp_path / "model.pt").exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    from contextseg.errors import ContextsegError

    laws.train_briefly(laws.make("supervised"), tmp_path, 1)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ContextsegError, match=r"checkpoint\.pt"):
        laws.train_briefly(laws.make("supervised"), tmp_path, 2)


# --- losses and class weights ---------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_reaches_every_loss(name: str, loss: str) -> None:
    """By the words of `--set`; the loss then trains every weight that the default does."""
    words = [f"loss={loss}"]
    arguments = Settings("data", name).set(words).arguments
    assert arguments == {"loss": loss}
    if name not in NAMES:
        assert METHODS[name](laws.plan(2), **arguments).loss.func is LOSSES[loss]
        return
    method = laws.make(name, 2, **arguments)
    assert {part.func for part in vars(method).values() if _is_loss(part)} >= {LOSSES[loss]}
    value = method(laws.batch(0, dims=2))["seg"]
    value.backward()
    assert torch.isfinite(value)
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in method.parameters())


def _is_loss(part: object) -> bool:
    return getattr(part, "func", None) in LOSSES.values()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_method_weighs_the_classes(name: str, loss: str) -> None:
    batch = laws.batch(0, dims=2)
    values = []
    for text in ("", "class_weights=1,1,1", "class_weights=1,1,9"):
        arguments = Settings("data", name).set([f"loss={loss}", text][: 1 + bool(text)]).arguments
        torch.manual_seed(0)
        method = laws.make(name, 2, **arguments)
        values.append(float(method(batch)["seg"].detach()))
    assert values[1] == pytest.approx(values[0], 1e-5)
    assert values[2] != pytest.approx(values[0], 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, 2.0), "2 weights for 3 classes.*background, bright, dark"),
        ((1.0, -1.0, 2.0), "numbers from 0"),
        ((1.0, 0.0, 0.0), "numbers from 0"),
    ],
)
def test_weights_that_do_not_go_with_the_classes_are_refused(
    name: str, weights: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ContextsegError, match=message):
        laws.make(name, 2, class_weights=weights)


def test_context_classes_have_the_weight_of_the_background() -> None:
    for name in ("context", "colab"):
        method = laws.make(name, 2, class_weights=(2.0, 1.0, 3.0), context_classes=3)
        assert method.loss.keywords["weight"] == (2.0, 1.0, 3.0, 2.0, 2.0)
