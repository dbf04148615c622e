"""How nearly our predictions with nnU-Net's models are nnU-Net's own; writes NNUNET.md.

    .venv-bench/bin/python benchmarks/agreement/nnunet_models.py

The networks are nnU-Net's, with random weights: what they segment is noise with borders everywhere,
on which a difference shows soonest. The scans are the embedded ones (T1 MR of sarcoma), as they
are, with thick slices, and with zeros around the body; and the same numbers taken for CT. nnU-Net
sums its logits in half precision; the last column is nnU-Net with sums in float32.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference import predict_from_raw_data as theirs
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

import contextseg as cs
from contextseg.disk import write_json, write_text
from contextseg.pipeline import DEMO_DATA
from contextseg.volume import Volume, read, read_labels, write

SEED = 0
SCANS = 2
MOST = 64  # voxels of a scan along each axis
HERE = Path(__file__).parent
SPACING = [3.27, 1.953, 1.953]
UNET = "dynamic_network_architectures.architectures.unet."
KINDS: dict[str, dict[str, Any]] = {
    "3-D": {},
    "3-D, residual encoder": {"residual": True},
    "2-D": {"dims": 2},
    "3-D, CT": {"scheme": "CTNormalization"},
    "3-D, thick slices": {"thick": 4, "spacing": [9.8, 1.953, 1.953]},
    "2-D, thick slices": {"thick": 4, "dims": 2},
    "3-D, normalised inside a mask": {"mask": True},
    "3-D, other spacing": {"spacing": [2.5, 2.5, 2.5]},
}


def plans(
    dims: int = 3,
    residual: bool = False,
    scheme: str = "ZScoreNormalization",
    spacing: list[float] = SPACING,
    mask: bool = False,
) -> dict[str, Any]:
    """What nnU-Net's planner would write, with narrow networks."""
    conv, norm = f"torch.nn.modules.conv.Conv{dims}d", "torch.nn.modules.instancenorm.InstanceNorm"
    convs = {"n_blocks_per_stage": [1, 2, 2]} if residual else {"n_conv_per_stage": [2, 2, 2]}
    network = {
        "n_stages": 3,
        "features_per_stage": [8, 16, 32],
        "conv_op": conv,
        "kernel_sizes": [[3] * dims] * 3,
        "strides": [[1] * dims, [2] * dims, [2] * dims],
        **convs,
        "n_conv_per_stage_decoder": [1, 1] if residual else [2, 2],
        "conv_bias": True,
        "norm_op": f"{norm}{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    resampling = {}
    for what, order, labels in (("data", 3, False), ("seg", 1, True), ("probabilities", 1, False)):
        kwargs = {"is_seg": labels, "order": order, "order_z": 0, "force_separate_z": None}
        resampling[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{what}_kwargs"] = kwargs
    full = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 32, 32][3 - dims :],
        "spacing": spacing[3 - dims :],
        "normalization_schemes": [scheme],
        "use_mask_for_norm": [mask],
        **resampling,
        "architecture": {
            "network_class_name": UNET + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    facts = {"percentile_00_5": 20.0, "percentile_99_5": 600.0, "mean": 200.0, "std": 120.0}
    return {
        "dataset_name": "Dataset001_Sarcoma",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "original_median_spacing_after_transp": spacing,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": facts},
        "configurations": {"it": full},
    }


def model(folder: Path, content: dict[str, Any], seed: int) -> Path:
    """A model folder with random weights, as nnU-Net saves it."""
    table = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "file_ending": ".nii.gz",
    }
    write_json(folder / "plans.json", content)
    write_json(folder / "dataset.json", table)
    full = content["configurations"]["it"]
    own = full["architecture"]
    torch.manual_seed(seed)
    net = get_network_from_plans(
        own["network_class_name"],
        own["arch_kwargs"],
        own["_kw_requires_import"],
        1,
        3,
        allow_init=True,
        deep_supervision=False,
    )
    for module in net.modules():
        if "InstanceNorm" in type(module).__name__:
            torch.nn.init.normal_(module.weight, 1, 0.3)
        if getattr(module, "bias", None) is not None and isinstance(module.bias, torch.Tensor):
            torch.nn.init.normal_(module.bias, 0, 0.3)
    checkpoint = {
        "network_weights": net.state_dict(),
        "logging": {"losses": [np.float64(1)]},
        "init_args": {"configuration": "it"},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": tuple(range(len(full["patch_size"]))),
    }
    (folder / "fold_0").mkdir(parents=True)
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def scans(folder: Path, thick: int, mask: bool) -> list[Path]:
    """Embedded scans, with every so-many slices, and zeros beyond an ellipse."""
    files = []
    for path in sorted((DEMO_DATA / "imagesTs").glob("*.nii.gz"))[:SCANS]:
        volume = read(path)
        middle = tuple(slice(max(0, (n - MOST) // 2), (n + MOST) // 2) for n in volume.shape)
        array = volume.array[(slice(None), *middle)][:, ::thick].astype(np.float32)
        affine = volume.affine @ np.diag([thick, 1, 1, 1])
        if mask:
            h, w = (np.linspace(-1, 1, n) for n in array.shape[2:])
            array[..., h[:, None] ** 2 + w**2 > 0.7] = 0
        files.append(folder / path.name)
        write(files[-1], Volume(array, affine))
    return files


@contextlib.contextmanager
def float32_sums() -> Iterator[None]:
    """nnU-Net's sliding window with sums in float32."""
    half, bell = torch.half, theirs.compute_gaussian

    def gaussian(*args: Any, **kwargs: Any) -> torch.Tensor:
        return bell(*args, **kwargs, dtype=torch.float32)

    gaussian.cache_clear = bell.cache_clear  # type: ignore[attr-defined]
    torch.half, theirs.compute_gaussian = torch.float32, gaussian
    try:
        yield
    finally:
        torch.half, theirs.compute_gaussian = half, bell


def compare(name: str, folder: Path) -> tuple[str, float, int, int, int]:
    """The smallest agreement, and how many voxels differ of how many, and with float32 sums."""
    given = dict(KINDS[name])
    images = scans(folder / "scans", given.pop("thick", 1), given.get("mask", False))
    made = model(folder / "model", plans(**given), SEED)
    predictor = theirs.nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(made), ("0",))
    ours = cs.load(made, device="cpu", confidence=False)
    labels = [ours.predict(path).label.array for path in images]
    shares, differ = [], []
    for sums, context in (("half", contextlib.nullcontext()), ("float32", float32_sums())):
        (folder / sums).mkdir()
        outputs = [str(folder / sums / path.name.replace("_0000.nii.gz", "")) for path in images]
        with context:
            predictor.predict_from_files_sequential([[str(path)] for path in images], outputs)
        wrong = [
            read_labels(f"{output}.nii.gz").array != label for output, label in zip(outputs, labels)
        ]
        shares.append(1 - max(float(mask.mean()) for mask in wrong))
        differ.append(sum(int(mask.sum()) for mask in wrong))
    return name, shares[0], differ[0], sum(label.size for label in labels), differ[1]


def main() -> None:
    torch.set_num_threads(1)
    # nnU-Net imports all of its trainers to find one, those of transformers too
    theirs.recursive_find_trainer_class_by_name = lambda name: nnUNetTrainer
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(KINDS):
            with contextlib.redirect_stdout(io.StringIO()):
                rows.append(compare(name, Path(folder) / str(i)))
            print(*rows[-1], flush=True)
    lines = [
        "# nnU-Net's models, predicted by us and by nnU-Net",
        "",
        "Written by `benchmarks/agreement/nnunet_models.py`: "
        f"{SCANS} embedded scans, at most {MOST} voxels along each axis; "
        f"networks of nnU-Net {version('nnunetv2')} with random weights (seed {SEED}); "
        "three classes, mirroring on, one thread.",
        "",
        "| model | voxels with the same label, in the worse scan | that differ "
        "| that differ where nnU-Net sums in float32 |",
        "|---|---|---|---|",
        *(f"| {n} | {s:.3%} | {d} of {voxels} | {exact} |" for n, s, d, voxels, exact in rows),
    ]
    write_text(HERE / "NNUNET.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
