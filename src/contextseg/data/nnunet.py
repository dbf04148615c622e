"""nnU-Net v2's plans as ours: what `plans.json` and `dataset.json` say, read without nnU-Net.

Isensee et al., Nature Methods 2021. A model that nnU-Net trained has to see scans as nnU-Net
prepared them, so that its plan is a `NNUNetPlan`, by which `prepare` goes nnU-Net's way. A new
training can take spacing, patch and network of nnU-Net's plans with our own preprocessing
(`training_plan`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.data.plan import Channel, Plan, lateral
from contextseg.data.tables import read_label_table
from contextseg.disk import read_json
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.inputs import reason_of
from contextseg.volume import AXIAL, axis_moves, read

if TYPE_CHECKING:
    from contextseg.data.layouts import Dataset

_SCHEMES = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale",
    "RGBTo01Normalization": "rescale",
}
_RESAMPLING = "resample_data_or_seg_to_shape"
_ELSEWHERE = "predict with nnU-Net, and give contextseg the label maps"


@dataclass(frozen=True)
class NNUNetPlan(Plan):
    """A plan of nnU-Net's, by whose rules scans are prepared for a network that it trained.

    `orientation` is that of scans whose slices are stored from foot to head; of others,
    `orientation_for` tells. nnU-Net turns nothing: its axes are those of the file, in the order of
    `transpose`. Where `patch_vox` has two numbers, slices keep their own distance.

    Attributes:
        transpose: The file's axes (D, H, W) in the network's order, nnU-Net's `transpose_forward`.
        reoriented: Whether its reader turns scans to RAS first.
        masked: Of each channel, whether it is normalised inside the voxels that are not zero.
        data_orders: Order of the spline for scans: (within slices, across thick slices).
        logit_orders: The same for logits.
        separate: Whether thick slices are resampled one by one; None where they are three times as
            thick as wide.
        network: Class and arguments of the network, as nnU-Net builds it.
    """

    transpose: tuple[int, int, int] = (0, 1, 2)
    reoriented: bool = False
    masked: tuple[bool, ...] = ()
    data_orders: tuple[int, int] = (3, 0)
    logit_orders: tuple[int, int] = (1, 0)
    separate: bool | None = None
    network: Mapping[str, Any] = field(default_factory=dict)

    def orientation_for(self, orientation: str) -> str:
        """Where the network's axes point in a scan.

        Args:
            orientation: Where the scan's own axes point.
        """
        own = AXIAL if self.reoriented else orientation
        return "".join(own[axis] for axis in self.transpose)


def read_nnunet_plan(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: str, where: Path
) -> NNUNetPlan:
    """The plan of one configuration of nnU-Net.

    Args:
        plans: Content of `plans.json` (or `nnUNetPlans.json`), also of nnU-Net before 2.3.
        dataset: Content of its `dataset.json`: channels and labels.
        configuration: Such as "3d_fullres" or "2d".
        where: The file, for messages.

    Returns:
        The plan.

    Raises:
        ContextsegError: There is no such configuration, or it is one that cannot be done here: a
            cascade's second stage, regions that overlap, another architecture or resampling.
    """
    try:
        own = _configuration(plans, configuration, where)
        return _plan(plans, dataset, own, where)
    except ContextsegError:
        raise
    except Exception as error:
        what = f"not nnU-Net's plans ({type(error).__name__}: {reason_of(error)})"
        remedy = "give the folder that nnUNetv2_train wrote"
        raise ContextsegError(where, what, remedy) from error


def _plan(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], own: Mapping[str, Any], where: Path
) -> NNUNetPlan:
    classes, values = nnunet_classes(dataset, where)
    transpose = _triple(plans["transpose_forward"])
    kwargs = own["architecture"]["arch_kwargs"]
    patch = tuple(int(n) for n in own["patch_size"])
    spacing = [float(mm) for mm in own["spacing"]]
    if len(spacing) == 2:  # slices keep their distance; the median stands for it
        spacing = [float(plans["original_median_spacing_after_transp"][0]), *spacing]
    if own.get("previous_stage"):
        what = f"a cascade, which needs the label maps of {own['previous_stage']}"
        raise ContextsegError(where, what, "give the folder of 3d_fullres, or " + _ELSEWHERE)
    data = _resampling(own, "data", (3, 0), where)
    logits = _resampling(own, "probabilities", (1, 0), where)
    widths = tuple(int(n) for n in kwargs["features_per_stage"])
    d, h, w = spacing
    return NNUNetPlan(
        dataset=str(plans["dataset_name"]),
        classes=classes,
        values=values,
        regions={name: (k,) for k, name in enumerate(classes) if k},
        channels=_channels(plans, dataset, own, where),
        orientation="".join(AXIAL[axis] for axis in transpose),
        spacing_mm=(d, h, w),
        patch_vox=patch,
        batch_size=int(own["batch_size"]),
        mirror=(len(patch) == 3, True, True),
        swaps=(),
        widths=widths,
        strides=tuple(tuple(int(n) for n in axes) for axes in kwargs["strides"]),
        kernels=tuple(tuple(int(n) for n in axes) for axes in kwargs["kernel_sizes"]),
        batch_dice=bool(own.get("batch_dice", False)),
        transpose=transpose,
        reoriented="Reorient" in plans.get("image_reader_writer", ""),
        masked=tuple(bool(m) for m in own["use_mask_for_norm"]),
        data_orders=data[0],
        logit_orders=logits[0],
        separate=data[1],
        network={"name": own["architecture"]["network_class_name"], **kwargs},
    )


def nnunet_classes(
    dataset: Mapping[str, Any], where: Path
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The classes of nnU-Net's `dataset.json`, in the order of the network's channels.

    Args:
        dataset: Its content.
        where: The file, for messages.

    Returns:
        Names, background first, and their values.

    Raises:
        ContextsegError: Its labels are regions that overlap.
    """
    labels = dataset["labels"]
    if any(isinstance(value, list | tuple) and len(value) > 1 for value in labels.values()):
        what = "labels that are regions (several values each), of which each has its own sigmoid"
        raise ContextsegError(where, what, _ELSEWHERE)
    classes, values, _, _ = read_label_table(labels, where)
    order = sorted(range(len(values)), key=lambda k: values[k])
    return tuple(classes[k] for k in order), tuple(values[k] for k in order)


def _configuration(plans: Mapping[str, Any], name: str, where: Path) -> dict[str, Any]:
    """A configuration with what it inherits, in the form of nnU-Net 2.3 and later."""
    every = plans["configurations"]
    if name not in every:
        what = f"there is no configuration {name}"
        raise ContextsegError(where, what, did_you_mean(name, every))
    own = dict(every[name])
    seen = {name}
    while (parent := own.pop("inherits_from", None)) and parent not in seen:
        seen.add(parent)
        own = {**every[parent], **own}
    if "architecture" not in own:
        own["architecture"] = _old_architecture(own)
    return own


def _old_architecture(own: Mapping[str, Any]) -> dict[str, Any]:
    """The network of plans before nnU-Net 2.3, which say only how it differs from the default."""
    convs = own["n_conv_per_stage_encoder"]
    kind = own["UNet_class_name"]
    most = own["unet_max_num_features"]
    base = own["UNet_base_num_features"]
    blocks = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": kind,
        "arch_kwargs": {
            "features_per_stage": [min(base * 2**i, most) for i in range(len(convs))],
            "kernel_sizes": own["conv_kernel_sizes"],
            "strides": own["pool_op_kernel_sizes"],
            blocks: convs,
            "n_conv_per_stage_decoder": own["n_conv_per_stage_decoder"],
        },
    }


def _channels(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], own: Mapping[str, Any], where: Path
) -> tuple[Channel, ...]:
    names = dataset.get("channel_names") or dataset["modality"]
    facts = plans.get("foreground_intensity_properties_per_channel")
    facts = facts or plans.get("foreground_intensity_properties_by_modality") or {}
    channels = []
    for i, scheme in enumerate(own["normalization_schemes"]):
        if scheme not in _SCHEMES:
            what = f"the normalisation {scheme} is not known here"
            raise ContextsegError(where, what, _ELSEWHERE)
        name = str(names[str(i)])
        kind = _SCHEMES[scheme]
        numbers: dict[str, Any] = {}
        if kind == "ct":
            own_facts = facts[str(i)]
            keys = {
                "low": "percentile_00_5",
                "high": "percentile_99_5",
                "mean": "mean",
                "sd": "std",
            }
            numbers = {ours: float(own_facts[theirs]) for ours, theirs in keys.items()}
        elif scheme.startswith("RGB"):
            numbers = {"high": 255.0}
        channels.append(Channel(name, kind, **numbers))
    return tuple(channels)


def _resampling(
    own: Mapping[str, Any], what: str, default: tuple[int, int], where: Path
) -> tuple[tuple[int, int], bool | None]:
    """The orders (within slices, across them), and whether slices are resampled one by one."""
    function = own.get(f"resampling_fn_{what}", _RESAMPLING)
    if function != _RESAMPLING:
        raise ContextsegError(where, f"resampling by {function} is not known here", _ELSEWHERE)
    kwargs = own.get(f"resampling_fn_{what}_kwargs", {})
    orders = (int(kwargs.get("order", default[0])), int(kwargs.get("order_z", default[1])))
    if orders[1] != 0:
        raise ContextsegError(where, f"order_z={orders[1]} across thick slices", _ELSEWHERE)
    return orders, kwargs.get("force_separate_z")


def _triple(values: Sequence[Any]) -> tuple[int, int, int]:
    a, b, c = (int(value) for value in values)
    return a, b, c


# --- a plan to train by ---------------------------------------------------------------------------

_LOOKED_AT = 10  # scans, to see how they are stored


def load_plan(path: str | Path, data: Dataset) -> Plan:
    """Read a plan of ours, or nnU-Net's plans as one to train by.

    Of nnU-Net's plans spacing, patch, batch, normalisation and network are taken. The rest is ours:
    scans are turned to one orientation and cropped to the body, and a left-right mirror exchanges
    left and right classes.

    Args:
        path: `plan.json`, or `nnUNetPlans.json` with nnU-Net's `dataset.json` beside it. Of several
            configurations 3d_fullres is taken; `nnUNetPlans.json:2d` names another.
        data: The data set that will be trained on.

    Returns:
        The plan.

    Raises:
        ContextsegError: It is no plan, nnU-Net's classes are not the data set's, or the scans are
            stored along different axes.
    """
    name, colon, configuration = str(path).rpartition(".json:")
    file = Path(f"{name}.json" if colon else path)
    content = read_json(file)
    if not isinstance(content, Mapping) or "configurations" not in content:
        return Plan.load(path)
    names = list(content["configurations"])
    usual = "3d_fullres" if "3d_fullres" in names else names[0]
    table = read_json(file.with_name("dataset.json"), dict[str, Any])
    theirs = read_nnunet_plan(content, table, configuration if colon else usual, file)
    if dict(zip(theirs.classes, theirs.values)) != dict(zip(data.classes, data.values)):
        what = f"its classes are {', '.join(theirs.classes[1:])}; the data set's are "
        what += ", ".join(data.classes[1:])
        raise ContextsegError(file, what, "give the plans that nnU-Net made for this data set")
    return replace(
        training_plan(theirs, _stored(data)), colours=data.colours, terminology=data.terminology
    )


def training_plan(theirs: NNUNetPlan, orientation: str) -> Plan:
    """nnU-Net's plan as one to train by.

    Args:
        theirs: nnU-Net's plan.
        orientation: How the training scans are stored; nnU-Net's axes are those of the files.

    Returns:
        The plan, in the orientation `AXIAL`; slices of a 2-D network stay its slices.
    """
    source = theirs.orientation_for(orientation)
    target = AXIAL
    if theirs.dims == 2:
        first = next(letter for letter in AXIAL if letter in _along(source[0]))
        target = first + AXIAL.replace(first, "")
    order, _ = axis_moves(source, target)
    use = order if theirs.dims == 3 else [axis - 1 for axis in order[1:]]
    swaps, lateral_mirror = lateral(theirs.classes)
    own = {f.name: getattr(theirs, f.name) for f in fields(Plan)}
    d, h, w = (theirs.spacing_mm[axis] for axis in order)
    mirror = [lateral_mirror or letter not in "RL" for letter in target]
    turned: dict[str, Any] = {
        "orientation": target,
        "spacing_mm": (d, h, w),
        "patch_vox": tuple(theirs.patch_vox[axis] for axis in use),
        "strides": tuple(tuple(axes[axis] for axis in use) for axes in theirs.strides),
        "kernels": tuple(tuple(axes[axis] for axis in use) for axes in theirs.kernels),
        "swaps": swaps,
        "mirror": (mirror[0], mirror[1], mirror[2]),
    }
    return Plan(**own | turned)


def _along(letter: str) -> str:
    """Both directions of an axis."""
    return next(pair for pair in ("SI", "AP", "RL") if letter in pair)


def _stored(data: Dataset) -> str:
    """How the scans of a data set are stored."""
    ways: dict[str, str] = {}
    for case in data.train[:_LOOKED_AT]:
        orientation = read(*case.images).orientation
        ways.setdefault("".join(_along(letter) for letter in orientation), orientation)
    if len(ways) != 1:
        what = f"its scans are stored along different axes ({', '.join(ways.values())})"
        remedy = "leave --plan out: nnU-Net's axes are those of the files"
        raise ContextsegError(data.folder, what, remedy)
    return next(iter(ways.values()))
