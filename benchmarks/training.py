"""A training step, and an epoch, against nnU-Net v2's own trainer, data loader and augmentation.

Equal on both sides: the network (the same weights give the same batch the same loss, or there is no
row), the patch, the batch and the preprocessed scans, which are the embedded ones. On a CPU each
side has one thread and its CPU time is taken; on a GPU both have the whole machine, as each uses it
by default (nnU-Net compiles its network), and it is wall time. nnU-Net asks for torchvision and
timm, but neither is imported on the way.

    python benchmarks/training.py [--quick]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contextseg.batch import Batch
from contextseg.data.cache import Cached
from contextseg.data.plan import Plan
from contextseg.data.sampling import Sampler
from contextseg.losses import shrunk
from contextseg.methods import Supervised
from contextseg.pipeline import DEMO_DATA
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.training import Training, TrainingState, train, training_step

PEER = "nnU-Net v2 nnUNetTrainer"
NAME = "Dataset999_bench"


@dataclass(frozen=True)
class Size:
    """What is trained, and how much of it is measured.

    Attributes:
        patch_vox: Sides of a patch; two numbers are a 2-D network.
        batch_size: Patches in a batch.
        base_width: Channels of the first level.
        spacing_mm: Of the grid, slices first: small, so that scans are larger than a patch.
        steps: Steps of an epoch that are measured in each round.
        rounds: How often.
        warm: Steps before that.
        batches: Batches that are read and augmented alone.
    """

    patch_vox: tuple[int, ...]
    batch_size: int
    base_width: int
    spacing_mm: tuple[float, float, float]
    steps: int
    rounds: int
    warm: int
    batches: int

    @property
    def configuration(self) -> str:
        """Its name in nnU-Net."""
        return "2d" if len(self.patch_vox) == 2 else "3d_fullres"


FULL = Size((48,) * 3, 2, 32, (2.5,) * 3, 4, 5, 1, 24)
QUICK = Size((32,) * 3, 2, 8, (4.0,) * 3, 4, 3, 1, 8)
FULL_GPU = Size((128,) * 3, 2, 32, (1.0,) * 3, 100, 3, 20, 24)
QUICK_GPU = Size((64,) * 3, 2, 16, (3.0,) * 3, 20, 3, 10, 8)


def rows(quick: bool) -> Iterator[tuple[str, str, float, float, str]]:
    """(claim, input, our seconds, nnU-Net's seconds, peer), one after the other.

    None without nnunetv2.
    """
    if find_spec("nnunetv2") is None:
        print("training: left out (nnunetv2 is not installed)", file=sys.stderr)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = (
        (QUICK_GPU if quick else FULL_GPU) if device.type == "cuda" else (QUICK if quick else FULL)
    )
    yield from rows_of(size, device)


def rows_of(
    size: Size, device: torch.device, profiled: Path | None = None
) -> Iterator[tuple[str, str, float, float, str]]:
    """The rows of one size on one device, after which where the time goes is written down.

    Args:
        size: What is measured.
        device: Where.
        profiled: File for the profiler's table of our loop. None does not profile.
    """
    torch.backends.cudnn.benchmark = True
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if device.type == "cuda" else 1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield from _rows(Path(folder), size, device, profiled)
    finally:
        torch.set_num_threads(threads)


def _rows(
    folder: Path, size: Size, device: torch.device, profiled: Path | None
) -> Iterator[tuple[str, str, float, float, str]]:
    plan, cases = embedded(folder, size)
    sampler = Sampler(cases, plan)
    with redirect_stdout(sys.stderr):
        trainer = nnunet_trainer(plan, cases, folder, device, size.configuration)
        loader, unused = trainer.get_dataloaders()
    widths, patch = "-".join(map(str, plan.widths)), " x ".join(map(str, plan.patch_vox))
    where = "float16, GPU" if device.type == "cuda" else "float32, one thread"
    given = f"{size.batch_size} x {patch}, {where}"
    try:
        step = interleaved(
            steps(plan, trainer, sampler, device), 3 * size.rounds, size.warm, device
        )
        yield (
            "training step: network and loss, there and back, SGD",
            f"U-Net {widths}, {given}",
            *step,
            PEER,
        )
        epoch = epoch_seconds(plan, trainer, sampler, loader, folder, size)
        yield (
            "training epoch, for each step: patches, augmentation, step",
            f"U-Net {widths}, {given}",
            *epoch,
            PEER,
        )
        if profiled is not None:
            profile(plan, sampler, folder, size, profiled)
        read, augment = split_seconds(sampler, loader, size, device)
        yield (
            "of the epoch, alone: reading the patches of a batch",
            given,
            *read,
            "nnU-Net v2 nnUNetDataLoader",
        )
        yield (
            "of the epoch, alone: augmenting them",
            given,
            *augment,
            "nnU-Net v2, batchgeneratorsv2",
        )
    finally:
        for each in (loader, unused):
            if hasattr(each, "_finish"):
                each._finish()


# --- what is measured -----------------------------------------------------------------------------


def steps(
    plan: Plan, trainer: Any, sampler: Sampler, device: torch.device
) -> tuple[Callable[[], Any], ...]:
    """One step of ours and one of nnU-Net's on the same batch, which is on the device.

    Both are checked to agree.
    """
    batch = sampler.batch(0, device=device)
    # Padding, unknown to us, is background to nnU-Net.
    batch = replace(batch, label=batch.label.clamp(min=0))
    method = Supervised(plan).to(device)
    method.train()
    theirs = {"data": batch.image, "target": targets(batch, trainer)}
    same_network(method.net, trainer)
    same_loss(method, batch, trainer, theirs)
    training = Training(lr=0.01)
    state = TrainingState(method, training, device)

    def ours() -> Any:
        return training_step(state, batch, training, training.lr, 1.0)

    return ours, lambda: trainer.train_step(theirs)


def epoch_seconds(
    plan: Plan, trainer: Any, sampler: Sampler, loader: Any, folder: Path, size: Size
) -> tuple[float, float]:
    """Seconds a step of the two training loops, without checkpoints.

    Medians over rounds of `size.steps`, in turn.
    """
    device = trainer.device
    taken: tuple[list[float], list[float]] = ([], [])
    for r in range(size.rounds):
        marks: dict[int, float] = {}

        def progress(
            step: int, total: int, terms: dict[str, float], marks: dict[int, float] = marks
        ) -> None:
            if step in (size.warm, size.warm + size.steps):
                marks[step] = now(device)

        # One step more than is measured: after the last one, a checkpoint is written.
        training = Training(
            steps=size.warm + size.steps + 1, save_every=10**9, check_every=0, device=device.type
        )
        train(
            Supervised(plan),
            sampler.batch,
            folder / f"epoch{r}",
            training,
            batch_size=size.batch_size,
            progress=progress,
        )
        taken[0].append((marks[size.warm + size.steps] - marks[size.warm]) / size.steps)
        for _ in range(size.warm):
            trainer.train_step(next(loader))
        start = now(device)
        for _ in range(size.steps):
            trainer.train_step(next(loader))
        taken[1].append((now(device) - start) / size.steps)
    return median(taken[0]), median(taken[1])


def split_seconds(
    sampler: Sampler, loader: Any, size: Size, device: torch.device
) -> tuple[tuple[float, float], tuple[float, float]]:
    """((our reading, nnU-Net's), (our augmentation, nnU-Net's)) of a batch, in this process.

    Augmentation is the whole less the reading. With a GPU ours runs there, and both do this while
    the network works."""
    single = getattr(loader, "data_loader", None) or loader.generator
    transforms, first, second = single.transforms, count(), count()

    def ours_read() -> None:
        n = next(first)
        for i in range(size.batch_size):
            sampler._item(n, i)

    def ours() -> None:
        sampler.batch(next(second), device=device)

    def peer_read() -> None:
        single.transforms = None
        single.generate_train_batch()

    def peer() -> None:
        single.transforms = transforms
        single.generate_train_batch()

    def many(work: Callable[[], None]) -> Callable[[], None]:
        return lambda: [work() for _ in range(size.batches)] and None

    work = [many(one) for one in (ours_read, peer_read, ours, peer)]
    read, their_read, whole, their_whole = (
        s / size.batches for s in interleaved(work, size.rounds, 1, device)
    )
    return (read, their_read), (whole - read, their_whole - their_read)


def profile(plan: Plan, sampler: Sampler, folder: Path, size: Size, out: Path) -> None:
    """Write where the time of our loop goes: the share in which the GPU idles, and its kernels."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    gpu = torch.cuda.is_available()
    few = min(size.steps, 6)  # the profiler keeps every operation
    training = Training(
        steps=size.warm + few + 1, save_every=10**9, check_every=0, device="cuda" if gpu else "cpu"
    )
    watching = profiler(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    )
    marks: dict[int, float] = {}

    def progress(step: int, total: int, terms: dict[str, float]) -> None:
        if step == size.warm:
            watching.start()
        if step in (size.warm, size.warm + few):
            marks[step] = now(torch.device(training.device))
        if step == size.warm + few:
            watching.stop()

    train(
        Supervised(plan),
        sampler.batch,
        folder / "profile",
        training,
        batch_size=size.batch_size,
        progress=progress,
    )
    seconds = marks[size.warm + few] - marks[size.warm]
    events = watching.key_averages()
    # An operation has the time of its kernels too, so kernels alone are counted.
    kernels = [event for event in events if event.device_type is DeviceType.CUDA]
    busy = sum(kernel.self_device_time_total for kernel in kernels if gpu) / 1e6
    table = events.table(
        sort_by="self_cuda_time_total" if gpu else "self_cpu_time_total", row_limit=25
    )
    share = f"{100 * max(0.0, 1 - busy / seconds):.1f} %" if gpu else "not measured (no GPU)"
    out.write_text(
        f"{few} steps in {seconds:.3f} s; the GPU idles {share} of it.\n\n{table}\n",
        encoding="utf-8",
    )


def interleaved(
    work: Sequence[Callable[[], Any]], rounds: int, warm: int, device: torch.device
) -> tuple[float, ...]:
    """Median seconds of each, taken in turn so that a busy machine slows all."""
    taken: list[list[float]] = [[] for _ in work]
    for r in range(-warm, rounds):
        for one, seconds in zip(work, taken):
            start = now(device)
            one()
            if r >= 0:
                seconds.append(now(device) - start)
    return tuple(median(seconds) for seconds in taken)


def now(device: torch.device) -> float:
    """CPU time of this process, or wall time when the GPU has done all it was given."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


# --- the same on both sides -----------------------------------------------------------------------


def targets(batch: Batch, trainer: Any) -> list[Tensor]:
    """The label at each resolution, as nnU-Net's data loader delivers it."""
    sizes = [
        [round(n * s) for n, s in zip(batch.label.shape[1:], scale)]
        for scale in trainer._get_deep_supervision_scales()
    ]
    return [shrunk(batch.label, size)[:, None].to(torch.int16).contiguous() for size in sizes]


def same_network(ours: nn.Module, trainer: Any) -> None:
    """Copy our weights into nnU-Net's network.

    Its biases, and its lowest head, which has no loss, have no match.
    """
    theirs = getattr(trainer.network, "_orig_mod", trainer.network)
    for pick in (_is_body, _is_up):
        pairs = list(zip(filter(pick, ours.modules()), filter(pick, theirs.modules()), strict=True))
        for mine, other in pairs:
            other.weight.data.copy_(mine.weight.data)
    for mine, other in zip(ours.heads, list(theirs.decoder.seg_layers)[::-1]):
        other.weight.data.copy_(mine.weight.data)


def _is_body(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.Conv3d)) and max(module.kernel_size) > 1


def _is_up(module: nn.Module) -> bool:
    return isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d))


@torch.no_grad()
def same_loss(method: Supervised, batch: Batch, trainer: Any, theirs: dict[str, Any]) -> None:
    """Raise `AssertionError` unless both give the batch the same loss, but for rounding.

    nnU-Net's Dice loss is ours less 1.
    """
    mine = float(method(batch)["seg"])
    network = getattr(trainer.network, "_orig_mod", trainer.network)
    other = float(trainer.loss(network(theirs["data"]), theirs["target"])) + 1
    if abs(mine - other) > 5e-3:
        raise AssertionError(f"the losses of the same weights and batch differ: {mine} and {other}")


# --- the two sides --------------------------------------------------------------------------------


def embedded(folder: Path, size: Size) -> tuple[Plan, list[Cached]]:
    """The plan and the preprocessed scans of the embedded training cases."""
    planning = {
        "dims": len(size.patch_vox),
        "spacing_mm": size.spacing_mm,
        "patch_vox": size.patch_vox,
        "batch_size": size.batch_size,
        "base_width": size.base_width,
    }
    run = Run(folder / "run", Settings(dataset=str(DEMO_DATA), planning=planning))
    run.make_plan()
    run.preprocess()
    return run.plan, run.cached(run.split[0])


def nnunet_trainer(
    plan: Plan,
    cases: Sequence[Cached],
    folder: Path,
    device: torch.device,
    configuration: str = "3d_fullres",
) -> Any:
    """nnU-Net's default trainer, initialised, for the same scans in its own file format."""
    os.environ |= {
        f"nnUNet_{part}": str(folder / part) for part in ("raw", "preprocessed", "results")
    }
    if device.type == "cpu":
        os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112  one process, so that one thread is one
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    np.random.seed(0)  # noqa: NPY002  nnU-Net draws from the global generators
    torch.manual_seed(0)
    place = folder / "preprocessed" / NAME / f"nnUNetPlans_{configuration}"
    place.mkdir(parents=True)
    for case in cases:
        nnunet_case(case, plan, place)
    plans = nnunet_plans(plan, configuration)
    trainer = nnUNetTrainer(plans, configuration, "all", nnunet_dataset(plan), device)
    trainer.initialize()
    trainer.network.train()
    return trainer


def nnunet_case(case: Cached, plan: Plan, place: Path) -> None:
    """One of our preprocessed cases as nnU-Net's preprocessing would have saved it."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    whole = tuple(slice(0, n) for n in case.image.shape[1:])
    image, label = case.patch(whole, plan.channels), np.array(case.label)[None]
    where = {k: np.argwhere(label == k) for k in range(1, len(plan.classes))}
    blocks, chunks = comp_blosc2_params(image.shape, plan.patch_vox, image.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(label.shape, plan.patch_vox, label.itemsize)
    nnUNetDatasetBlosc2.save_case(
        image, label, {"class_locations": where}, str(place / case.record.name),
        chunks=chunks, blocks=blocks, chunks_seg=chunks_seg, blocks_seg=blocks_seg,
    )  # fmt: skip


def nnunet_dataset(plan: Plan) -> dict[str, Any]:
    """nnU-Net's dataset.json."""
    return {
        "channel_names": {str(i): channel.name for i, channel in enumerate(plan.channels)},
        "labels": dict(zip(plan.classes, plan.values)),
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }


def nnunet_plans(plan: Plan, configuration_name: str = "3d_fullres") -> dict[str, Any]:
    """nnU-Net's plans.json, its planner's defaults wherever our plan says nothing."""
    levels = len(plan.widths)
    network = {
        "n_stages": levels,
        "features_per_stage": list(plan.widths),
        "conv_op": f"torch.nn.modules.conv.Conv{plan.dims}d",
        "kernel_sizes": [list(kernel) for kernel in plan.kernels],
        "strides": [list(stride) for stride in plan.strides],
        "n_conv_per_stage": [2] * levels,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{plan.dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    resampling: dict[str, Any] = {}
    for what, is_seg, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1)):
        resampling[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        settings = {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}
        resampling[f"resampling_fn_{what}_kwargs"] = settings
    schemes = {"ct": "CTNormalization", "zscore": "ZScoreNormalization"}
    configuration = {
        "data_identifier": f"nnUNetPlans_{configuration_name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": plan.batch_size,
        "patch_size": list(plan.patch_vox),
        "spacing": list(plan.spacing_mm)[3 - plan.dims :],
        "normalization_schemes": [schemes[channel.kind] for channel in plan.channels],
        "use_mask_for_norm": [False] * len(plan.channels),
        **resampling,
        "batch_dice": plan.batch_dice,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    intensities = {
        str(i): {"mean": c.mean, "std": c.sd, "percentile_00_5": c.low, "percentile_99_5": c.high}
        for i, c in enumerate(plan.channels)
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": intensities,
        "configurations": {configuration_name: configuration},
        "continue_training": False,
    }


if __name__ == "__main__":
    for claim, given, ours_s, peer_s, name in rows(quick="--quick" in sys.argv):
        print(
            f"{claim}; {given}: {ours_s:.4f} s, {name} {peer_s:.4f} s, ratio {peer_s / ours_s:.2f}",
            flush=True,
        )
