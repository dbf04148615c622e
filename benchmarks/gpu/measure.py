"""What is measured on a GPU, a function for each step of `steps.py`.

Each yields rows as the other benchmarks do: (claim, input, ours, the peer's, the peer's name). A
note is a row with 0 for both numbers, whose text is all that it says. With `dry` all is tiny and
runs on a CPU, to see before there is a GPU that it works.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

Row = tuple[str, str, float, float, str]
NNUNET_3D = "3d_fullres"
FLARE_GB = 2.0
CLASSES = 14  # FLARE22: background and 13 organs


def device(dry: bool) -> torch.device:
    """The GPU, or the CPU where it is only seen whether all works."""
    return torch.device("cpu" if dry else "cuda")


def note(claim: str, text: str) -> Row:
    """A row that says something and compares nothing."""
    return claim, text, 0.0, 0.0, ""


# --- a: the laws ----------------------------------------------------------------------------------


def laws(dry: bool, out: Path) -> Iterator[Row]:
    """The tests that need a GPU: half precision, resume, CoLab's product, the CPU's labels."""
    environment = os.environ | ({"CONTEXTSEG_GPU_TESTS": "cpu"} if dry else {})
    tests = ["tests/test_gpu.py"] if dry else [
        "tests/test_gpu.py",
        "tests/test_training.py",
        "tests/test_predict.py",
        "tests/test_calibration.py",
    ]  # fmt: skip
    wanted = "gpu or cuda"
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:xdist"]
    command += ["-k", wanted, "-rfE", "--tb=short", *tests]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    (out / "laws.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    summary = re.findall(r"^.*\d+ (?:passed|failed).*$", done.stdout, re.MULTILINE)
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.MULTILINE)
    yield note("laws on the GPU", "; ".join([*summary[-1:], *failed]) or "no test ran")
    if done.returncode:
        raise AssertionError(f"the laws do not hold: {'; '.join(failed) or done.stdout[-500:]}")


# --- b: training ----------------------------------------------------------------------------------


def _training(size: Any, name: str, dry: bool, out: Path, compiled: bool) -> Iterator[Row]:
    import training

    os.environ["nnUNet_compile"] = "t" if compiled else "f"  # noqa: SIM112
    file = out / f"profile-{name}.txt"
    for claim, given, ours, theirs, peer in training.rows_of(size, device(dry), file):
        how = "compiled" if compiled else "not compiled"
        yield claim, given, ours, theirs, f"{peer}, {how}"
    if file.exists():
        yield note(f"profile of our loop, {name}", file.read_text(encoding="utf-8").split("\n")[0])


def _sizes(dry: bool) -> tuple[Any, Any]:
    """nnU-Net's 3d_fullres and 2d at the sizes of its largest plans for 8 GB."""
    import training

    if dry:
        small = replace(training.QUICK, base_width=4, steps=2, rounds=1, batches=2)
        return small, replace(small, patch_vox=(32, 32), batch_size=3, spacing_mm=(8.0, 4.0, 4.0))
    three = training.Size((128,) * 3, 2, 32, (1.0,) * 3, 40, 2, 10, 16)
    return three, training.Size((512, 512), 12, 32, (3.27, 0.25, 0.25), 40, 2, 10, 16)


def training_3d(dry: bool, out: Path) -> Iterator[Row]:
    """Step and epoch at 128^3, nnU-Net not compiled."""
    yield from _training(_sizes(dry)[0], "3d", dry, out, compiled=False)


def training_2d(dry: bool, out: Path) -> Iterator[Row]:
    """Step and epoch at 512 x 512, nnU-Net not compiled."""
    yield from _training(_sizes(dry)[1], "2d", dry, out, compiled=False)


def training_3d_compiled(dry: bool, out: Path) -> Iterator[Row]:
    """The same at 128^3 against nnU-Net compiled, its default on a GPU."""
    size = replace(_sizes(dry)[0], rounds=1)
    yield from _training(size, "3d-compiled", dry, out, compiled=True)


def training_2d_compiled(dry: bool, out: Path) -> Iterator[Row]:
    """The same at 512 x 512 against nnU-Net compiled, its default on a GPU."""
    size = replace(_sizes(dry)[1], rounds=1)
    yield from _training(size, "2d-compiled", dry, out, compiled=True)


def precision(dry: bool, out: Path) -> Iterator[Row]:
    """Our plain step in other ways: channels last, bfloat16, compiled. Input to decisions."""
    import colab

    side, widths = (32, (8, 16, 32)) if dry else (128, (32, 64, 128, 256, 320, 320))
    size = colab.Size(side, 2, widths, 2 if dry else 15, 1 if dry else 5)
    where = device(dry)
    torch.backends.cudnn.benchmark = True
    base = _step_seconds(size, where)
    given = f"U-Net {'-'.join(map(str, widths))}, 2 x {side}^3, plain training step"
    ways: dict[str, Callable[[], float]] = {
        "float32 with TF32": lambda: _step_seconds(size, where, precision="float32"),
        "channels last": lambda: _step_seconds(size, where, channels_last=True),
        "compiled network": lambda: _step_seconds(size, where, compiled=not dry),
    }
    for name, seconds in ways.items():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        yield f"training step, {name}", given, seconds(), base, "our default, float16"


def _step_seconds(
    size: Any,
    where: torch.device,
    precision: str = "auto",
    channels_last: bool = False,
    compiled: bool = False,
) -> float:
    import colab
    from contextseg.methods import METHODS
    from contextseg.training import Training, TrainingState, training_step

    torch.manual_seed(0)
    method = METHODS["supervised"](colab.plan(size)).to(where)
    batch = colab.phantom_batch(size).to(where)
    if channels_last:
        method.net.to(memory_format=torch.channels_last_3d)
        image = batch.image.contiguous(memory_format=torch.channels_last_3d)
        batch = replace(batch, image=image)
    if compiled:
        method.net = torch.compile(method.net)
    training = Training(lr=0.01, precision=precision)
    state = TrainingState(method, training, where)
    taken = []
    for n in range(-size.warm, size.rounds):
        state.step = max(n, 0)
        start = colab.now(where)
        training_step(state, batch, training, training.lr, 1.0)
        taken.append(colab.now(where) - start)
    return median(taken[size.warm :])


# --- c: CoLab -------------------------------------------------------------------------------------


def colab(dry: bool, out: Path) -> Iterator[Row]:
    """A step of CoLab against plain training, time and memory, at 80^3 and 128^3."""
    import colab

    ways: dict[str, dict[str, Any]] = {
        "t = 2, default": {},
        "t = 2, f's last level, whole batch and patch, every 4th step": colab.LAST,
        "t = 2, the same at every 10th step": colab.LAST | {"generator_every": 10},
        "t = 2, the paper's: generator of full size, every step, whole batch and patch": (
            colab.PAPER
        ),
        "t = 2, the authors' code: the same every 5th step, by finite differences": colab.AUTHORS,
        "t = 6, default": {"context_classes": 6},
    }
    sizes = [
        colab.Size(128, 2, (32, 64, 128, 256, 320, 320), 8, 3),
        colab.Size(80, 2, (30, 60, 120, 240, 320), 12, 4),
    ]
    where = device(dry)
    torch.backends.cudnn.benchmark = True
    for size in [colab.QUICK] if dry else sizes:
        widths = "-".join(map(str, size.widths))
        given = f"U-Net {widths}, {size.batch} x {size.side}^3, {'CPU' if dry else 'float16, GPU'}"
        for title, arguments in ways.items():
            seconds = colab.seconds(size, where, arguments)
            yield f"CoLab training step, {title}", given, *seconds, colab.PLAIN
            if not dry:
                plain = _peak_mb(colab, size, where, "supervised", {})
                ours = _peak_mb(colab, size, where, "colab", arguments)
                yield f"CoLab peak memory, {title}, MB", given, ours, plain, colab.PLAIN


def _peak_mb(
    colab: Any, size: Any, where: torch.device, name: str, arguments: dict[str, Any]
) -> float:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = colab.stepper(size, where, name, arguments)
    for n in range(2):
        step(n)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    del step
    torch.cuda.empty_cache()
    return peak


# --- d: propagation -------------------------------------------------------------------------------


def propagation(dry: bool, out: Path) -> Iterator[Row]:
    """Slices a second against the published loop, then how long a person waits."""
    import propagation
    from contextseg.nets.stcn import STCNS
    from contextseg.propagation import Session

    where = device(dry)
    torch.backends.cudnn.benchmark = True
    sizes = [("small", 64, 3)] if dry else [("stcn", 512, 24), ("stcn", 480, 24)]
    for name, side, slices in sizes:
        torch.manual_seed(0)
        net = STCNS[name](3).eval().to(where)
        size = propagation.Size(name, side, slices, 1 if dry else 2, (1,))
        for objects in (1,) if dry else (1, 5, 13):
            try:
                yield propagation.row(net, size, objects, True, where)
            except AssertionError as error:
                yield note(f"propagation, {objects} objects of {side}", f"no row: {error}")
    net = STCNS["small"](3).eval().to(where)
    size = propagation.Size("small", 64 if dry else 512, 7 if dry else 99, 1, (1,))
    volume, label = propagation.blocks(size, 1, where)
    session = Session(net, volume, keep=128)
    last = volume.shape[1] - 1
    drawn = {0: label, last // 2: label, last: label}
    seconds = []
    for labelled in (drawn, drawn | {last // 4: label}, drawn | {last // 3: label}):
        start = propagation.now(where)
        session.propagate(labelled)
        seconds.append(propagation.now(where) - start)
    given = f"small STCN, {volume.shape[1]} slices of {size.side} x {size.side}, 1 object"
    yield "a refill after a correction, slices kept", given, seconds[2], seconds[0], "first fill"


# --- e: prediction --------------------------------------------------------------------------------


def prediction(dry: bool, out: Path) -> Iterator[Row]:
    """A scan of 512 x 512 x 200 with 13 organs, from the resampled image to labels on its grid."""

    from contextseg.methods import METHODS
    from contextseg.predict import segment
    from contextseg.predict.memory import slab_gb, slab_home

    where = device(dry)
    shape = (24, 40, 40) if dry else (200, 512, 512)
    spacing = (2.5, 0.8, 0.8)
    plan = _organ_plan(dry)
    grid = tuple(round(n * s / p) for n, s, p in zip(shape, spacing, plan.spacing_mm))
    torch.manual_seed(0)
    method = METHODS["supervised"](plan).to(where).eval()
    _spread(method)
    image = np.random.default_rng(0).normal(size=(1, *grid)).astype(np.float32)
    arguments = {"device": where, "mirror_axes": (0, 1, 2), "batch_size": 1}
    given = f"{'x'.join(map(str, grid))} to {'x'.join(map(str, shape))}, {CLASSES} classes, mirrors"
    warm = image[:, : plan.patch_vox[0], : plan.patch_vox[1], : plan.patch_vox[2]]
    segment(method.predict, warm, warm.shape[1:], plan.patch_vox, **arguments)
    # Where a user's memory_gb=2 sums the logits.
    slab = slab_gb(CLASSES, grid, plan.patch_vox)
    home = slab_home(slab, 0.0, where, FLARE_GB)
    placed = dict(zip(("slab_device", "slab_type"), home))
    for name, more, free in (("under a cap of 2 GB", placed, dry), ("without a cap", {}, True)):
        given_to = (method.predict, image, shape, plan.patch_vox)
        ours, seconds, ours_mb = _under_cap(partial(segment, *given_to, **arguments, **more), free)
        came = "out of memory" if ours is None else f"{seconds:.2f} s, {ours_mb:.0f} MB reserved"
        yield note(f"our prediction {name}", f"{given}: {came}")
    # nnU-Net resamples its logits on the CPU, for a minute (see the rows of logits); here both end
    # with labels on the network's grid.
    arguments["device"] = where
    mine, seconds, ours_mb = _under_cap(
        lambda: segment(method.predict, image, grid, plan.patch_vox, **arguments), True
    )
    assert mine is not None
    theirs, their_seconds, theirs_mb = _nnunet_prediction(method, plan, image, where)
    given = f"{'x'.join(map(str, grid))}, {CLASSES} classes, mirrors"
    peer = "nnU-Net v2 nnUNetPredictor, logits on the GPU"
    yield "prediction on the network's grid", given, seconds, their_seconds, peer
    yield note(
        "same weights", f"{100 * float(np.mean(theirs == mine)):.2f} % of the labels are the same"
    )
    if not dry:
        yield "prediction, peak GPU memory reserved, MB", given, ours_mb, theirs_mb, peer


def _under_cap(
    work: Callable[[], np.ndarray], free: bool
) -> tuple[np.ndarray | None, float, float]:
    """(labels, seconds, MB reserved) with 2 GB of GPU memory, FLARE's allowance, or without a cap.

    No labels where that is too little.
    """
    if not torch.cuda.is_available():
        start = time.perf_counter()
        return work(), time.perf_counter() - start, 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(1.0 if free else FLARE_GB * 2**30 / total)
    try:
        torch.cuda.synchronize()
        start = time.perf_counter()
        labels = work()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return labels, seconds, torch.cuda.max_memory_reserved() / 2**20
    except torch.OutOfMemoryError:
        return None, 0.0, 0.0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _spread(method: Any) -> None:
    """Weights whose logits differ enough that rounding does not decide."""
    with torch.no_grad():
        for head in method.net.heads:
            head.weight.mul_(30)


def _organ_plan(dry: bool) -> Any:
    import colab

    size = colab.QUICK if dry else colab.Size(128, 2, (32, 64, 128, 256, 320, 320), 1, 0)
    names = ("background", *(f"organ{k}" for k in range(1, CLASSES)))
    regions = {name: (k,) for k, name in enumerate(names) if k}
    return replace(
        colab.plan(size),
        classes=names,
        values=tuple(range(CLASSES)),
        regions=regions,
        spacing_mm=(2.0, 1.0, 1.0) if not dry else (2.5, 1.0, 1.0),
    )


def _nnunet_prediction(
    method: Any,
    plan: Any,
    image: np.ndarray,
    where: torch.device,
) -> tuple[np.ndarray, tuple[float, float]]:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    import training

    manager = PlansManager(training.nnunet_plans(plan))
    configuration = manager.get_configuration(NNUNET_3D)
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        len(plan.channels),
        CLASSES,
        deep_supervision=True,
    ).to(where)
    training.same_network(method.net, type("Trainer", (), {"network": network}))
    network.decoder.deep_supervision = False
    network.eval()
    predictor = nnUNetPredictor(
        use_mirroring=True,
        allow_tqdm=False,
        device=where,
        perform_everything_on_device=where.type == "cuda",
    )
    predictor.manual_initialization(
        network, manager, configuration, [network.state_dict()], training.nnunet_dataset(plan),
        "nnUNetTrainer", (0, 1, 2),
    )  # fmt: skip
    data = torch.from_numpy(image)
    warm = tuple(slice(0, n) for n in plan.patch_vox)
    predictor.predict_logits_from_preprocessed_data(data[:, *warm])
    _reset_peak()
    start = training.now(where)
    logits = predictor.predict_logits_from_preprocessed_data(data)
    seconds = training.now(where) - start
    return logits.argmax(0).numpy(), seconds, _reset_peak()


def _reset_peak() -> float:
    """MB of GPU memory reserved at most since the last call; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    peak = torch.cuda.max_memory_reserved() / 2**20
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak


STEPS: dict[str, Callable[[bool, Path], Iterator[Row]]] = {
    "laws": laws,
    "training-3d": training_3d,
    "training-2d": training_2d,
    "colab": colab,
    "propagation": propagation,
    "prediction": prediction,
    "precision": precision,
    "training-3d-compiled": training_3d_compiled,
    "training-2d-compiled": training_2d_compiled,
}
