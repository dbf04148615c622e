"""What the page draws, as arrays: histograms of logits and intensities, and slices of one case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from contextseg.data.cache import Cached
from contextseg.reports.planes import NEAR_MM, PLANES, UPRIGHT
from contextseg.runs import Run
from contextseg.studies.diagnose.contexts import ContextMaps
from contextseg.studies.diagnose.measure import Measured, distance_mm
from contextseg.volume import axis_moves

Arrays = dict[str, np.ndarray]


class MeasuredCase(NamedTuple):
    """A case, and what was predicted of it.

    Attributes:
        case: The case, preprocessed.
        called: Where it is called ROI, (D, H, W) bool.
        contexts: Its contexts. None of a method without any.
    """

    case: Cached
    called: np.ndarray
    contexts: ContextMaps | None


def histograms(measured: Mapping[str, Mapping[str, Measured]]) -> Arrays:
    """Histograms of each split and tissue; see `measure.Margins`.

    Args:
        measured: Split -> case -> what was measured.

    Returns:
        SPLIT/TISSUE/pairs, rows of (bin of z_background, bin of z_roi, voxels), and
        SPLIT/TISSUE/margins, rows of (bin, voxels); int64.
    """
    arrays = {}
    for split, cases in measured.items():
        for tissue, margins in Measured.together(cases.values()).tissues.items():
            pairs = [(i, j, n) for (i, j), n in sorted(margins.pairs.items())]
            bins = sorted(margins.margins.items())
            arrays[f"{split}/{tissue}/pairs"] = np.array(pairs, np.int64).reshape(-1, 3)
            arrays[f"{split}/{tissue}/margins"] = np.array(bins, np.int64).reshape(-1, 2)
    return arrays


# --- intensities ----------------------------------------------------------------------------------


def sample(
    measured: MeasuredCase, image: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Intensities and contexts of background voxels, of up to 10,000 voxels of a case's body.

    Args:
        measured: The case.
        image: Its normalised image, (C, D, H, W).
        label: Its label, (D, H, W).

    Returns:
        The intensity of the first channel, (N,); and M q, how much each voxel is trained to be of
        each context, (t, N), or (0, N) of a method without contexts.
    """
    d, h, w = measured.case.voxels("body").T
    d, h, w = (axis[label[d, h, w] == 0] for axis in (d, h, w))
    x = image[0, d, h, w]
    contexts = measured.contexts
    if contexts is None:
        return x, np.zeros((0, len(x)), np.float32)
    near = 1.0 if contexts.near is None else contexts.near[d, h, w]
    return x, contexts.q[:, d, h, w] * near


def intensities(samples: Sequence[tuple[np.ndarray, np.ndarray]], bins: int = 60) -> Arrays:
    """Histograms of intensity, one for each context.

    The bins span the 0.5th to the 99.5th percentile of all samples together; what lies outside is
    left out.

    Args:
        samples: (intensities (N,), weights (t, N)) of each case, as `sample` gives them.
        bins: Number of bins.

    Returns:
        intensity/edges (bins + 1,), and intensity/counts (t, bins), the weight of each context in
        each bin.

    Example:
        >>> arrays = intensities([(np.array([0.0, 0, 1]), np.array([[1, 0.5, 0], [0, 0.5, 1]]))], 2)
        >>> arrays["intensity/counts"].tolist()
        [[1.5, 0.0], [0.5, 0.0]]
    """
    x = np.concatenate([x for x, _ in samples])
    weights = np.concatenate([w for _, w in samples], 1)
    low, high = np.percentile(x, (0.5, 99.5)) if len(x) else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-6), bins + 1)
    counts = np.array([np.histogram(x, edges, weights=w)[0] for w in weights])
    return {"intensity/edges": edges, "intensity/counts": counts.reshape(len(weights), bins)}


# --- slices ---------------------------------------------------------------------------------------


def sections(
    run: Run, measured: MeasuredCase, image: np.ndarray, label: np.ndarray
) -> tuple[dict[str, Any], Arrays]:
    """A case in three upright planes; one in which it is one voxel thin is left out.

    Args:
        run: The run, whose plan has orientation and spacing.
        measured: The case.
        image: Its normalised image, (C, D, H, W).
        label: Its label, (D, H, W).

    Returns:
        The name of the case and the pixel size of each plane in mm, (y, x). And arrays
        PLANE/KIND, (H, W) uint8: grey, the first channel from its 1st to its 99th percentile;
        label and called, 1 in the ROI; false, 1 for a false positive near the ROI and 2 for one
        far from it; near, M, 0 to 255 for 0 to 1; q, as M, (t, H, W); predicted, f's own contexts,
        as q.
    """
    low, high = np.percentile(image[0], (1, 99))
    far = distance_mm(label, run.plan.spacing_mm) > NEAR_MM * (1 + 1e-6)
    volumes: Arrays = {
        "grey": np.clip((image[0] - low) / max(high - low, 1e-6) * 255, 0, 255).round(),
        "label": label > 0,
        "called": measured.called,
        "false": (measured.called & (label == 0)) * (1 + far),
    }
    if measured.contexts is not None:
        volumes["q"] = np.rint(measured.contexts.q * 255)
        if measured.contexts.predicted is not None:
            volumes["predicted"] = np.rint(measured.contexts.predicted * 255)
        if measured.contexts.near is not None:
            volumes["near"] = np.rint(measured.contexts.near * 255)
    order, flips = axis_moves(run.plan.orientation, UPRIGHT)
    volumes = {
        kind: _upright(array, order, flips).astype(np.uint8) for kind, array in volumes.items()
    }
    spacing_mm = [float(run.plan.spacing_mm[i]) for i in order]
    centre = _centre(volumes["label"], volumes["false"])
    sizes: dict[str, tuple[float, float]] = {}
    arrays: Arrays = {}
    for plane, axis, _ in PLANES:
        y, x = (i for i in range(3) if i != axis)
        if min(volumes["grey"].shape[y], volumes["grey"].shape[x]) == 1:
            continue
        sizes[plane] = (spacing_mm[y], spacing_mm[x])
        for kind, volume in volumes.items():
            arrays[f"{plane}/{kind}"] = volume.take(centre[axis], axis + volume.ndim - 3)
    return {"case": measured.case.record.name, "pixel_mm": sizes}, arrays


def _upright(array: np.ndarray, order: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    lead = array.ndim - 3
    array = array.transpose([*range(lead), *(lead + i for i in order)])
    return np.flip(array, tuple(lead + axis for axis, flip in enumerate(flips) if flip))


def _centre(roi: np.ndarray, false: np.ndarray) -> tuple[int, ...]:
    """The voxel that the planes go through.

    Of the slices with ROI, the one with the most false positives; in it, the ROI's voxel nearest to
    its middle. Without a ROI, that of the false positives; without both, the middle.
    """
    mask = roi if roi.any() else false
    if not mask.any():
        return tuple(n // 2 for n in roi.shape)
    areas = np.count_nonzero(mask, axis=(1, 2))
    errors = np.count_nonzero(false, axis=(1, 2))
    d = max(np.flatnonzero(areas).tolist(), key=lambda i: (errors[i], areas[i]))
    places = np.argwhere(mask[d])
    h, w = places[((places - places.mean(0)) ** 2).sum(1).argmin()].tolist()
    return d, h, w
