"""What the page draws, as arrays: histograms of logits and intensities, and slices of one case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from contextseg.data.cache import Cached
from contextseg.diagnose.contexts import Taught
from contextseg.diagnose.measure import Measured, distance_mm
from contextseg.report.planes import NEAR_MM, PLANES, UPRIGHT
from contextseg.run import Run
from contextseg.volume import axis_moves

Arrays = dict[str, np.ndarray]


class Seen(NamedTuple):
    """A measured case: `called` (D, H, W) bool, where it is called ROI; its contexts, of a method with some."""

    case: Cached
    called: np.ndarray
    taught: Taught | None


def histograms(measured: Mapping[str, Mapping[str, Measured]]) -> Arrays:
    """Of each split and tissue: SPLIT/TISSUE/pairs, rows of (bin of z_background, bin of z_roi, voxels), and
    SPLIT/TISSUE/margins, rows of (bin, voxels); see `measure.Margins`.
    """
    arrays = {}
    for split, cases in measured.items():
        for tissue, found in Measured.together(cases.values()).tissues.items():
            pairs = [(i, j, n) for (i, j), n in sorted(found.pairs.items())]
            arrays[f"{split}/{tissue}/pairs"] = np.array(pairs, np.int64).reshape(-1, 3)
            arrays[f"{split}/{tissue}/margins"] = np.array(sorted(found.margins.items()), np.int64).reshape(-1, 2)
    return arrays


# --- intensities ------------------------------------------------------------------------------------------------------


def sample(seen: Seen, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of up to 10,000 voxels of a case's body, those of the background: the normalised intensity of the first channel
    (N,), and how much each is taught to be of each context, M q, (t, N); (0, N) for a method without contexts.
    """
    d, h, w = seen.case.voxels("body").T
    d, h, w = (axis[label[d, h, w] == 0] for axis in (d, h, w))
    x = image[0, d, h, w]
    if seen.taught is None:
        return x, np.zeros((0, len(x)), np.float32)
    near = 1.0 if seen.taught.near is None else seen.taught.near[d, h, w]
    return x, seen.taught.q[:, d, h, w] * near


def intensities(samples: Sequence[tuple[np.ndarray, np.ndarray]], bins: int = 60) -> Arrays:
    """intensity/edges (bins + 1,), and intensity/counts (t, bins), the weight of each context in each bin.

    The bins span the 0.5th to the 99.5th percentile of all samples together; what lies outside is left out.

    >>> made = intensities([(np.array([0.0, 0, 1]), np.array([[1, 0.5, 0], [0, 0.5, 1]]))], bins=2)
    >>> made["intensity/counts"].tolist()
    [[1.5, 0.0], [0.5, 0.0]]
    """
    x, weights = np.concatenate([x for x, _ in samples]), np.concatenate([w for _, w in samples], 1)
    low, high = np.percentile(x, (0.5, 99.5)) if len(x) else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-6), bins + 1)
    counts = [np.histogram(x, edges, weights=w)[0] for w in weights]
    return {"intensity/edges": edges, "intensity/counts": np.array(counts).reshape(len(weights), bins)}


# --- slices -----------------------------------------------------------------------------------------------------------


def sections(run: Run, seen: Seen, image: np.ndarray, label: np.ndarray) -> tuple[dict[str, Any], Arrays]:
    """A case in three upright planes: its name and the planes' pixel sizes in mm (y, x); and the arrays.

    PLANE/KIND (H, W) uint8. grey: the first channel, its 1st to 99th percentile; label and called: 1 in the ROI; false:
    1 for a false positive near the ROI, 2 for one far from it; near: M, 0 to 255 for 0 to 1; q: as M, (t, H, W). A
    plane in which the case is one voxel thin is left out.
    """
    low, high = np.percentile(image[0], (1, 99))
    far = distance_mm(label, run.plan.spacing_mm) > NEAR_MM * (1 + 1e-6)
    volumes: Arrays = {
        "grey": np.clip((image[0] - low) / max(high - low, 1e-6) * 255, 0, 255).round(),
        "label": label > 0,
        "called": seen.called,
        "false": (seen.called & (label == 0)) * (1 + far),
    }
    if seen.taught is not None:
        volumes["q"] = np.rint(seen.taught.q * 255)
        volumes |= {} if seen.taught.near is None else {"near": np.rint(seen.taught.near * 255)}
    order, flips = axis_moves(run.plan.orientation, UPRIGHT)
    volumes = {kind: _turned(array, order, flips).astype(np.uint8) for kind, array in volumes.items()}
    mm, centre = [float(run.plan.spacing_mm[i]) for i in order], _centre(volumes["label"], volumes["false"])
    sizes: dict[str, tuple[float, float]] = {}
    arrays: Arrays = {}
    for plane, axis, _ in PLANES:
        y, x = (i for i in range(3) if i != axis)
        if min(volumes["grey"].shape[y], volumes["grey"].shape[x]) > 1:
            sizes[plane] = (mm[y], mm[x])
            arrays |= {f"{plane}/{kind}": v.take(centre[axis], axis + v.ndim - 3) for kind, v in volumes.items()}
    return {"case": seen.case.record.name, "pixel_mm": sizes}, arrays


def _turned(array: np.ndarray, order: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    lead = array.ndim - 3
    array = array.transpose([*range(lead), *(lead + i for i in order)])
    return np.flip(array, tuple(lead + axis for axis, flip in enumerate(flips) if flip))


def _centre(roi: np.ndarray, false: np.ndarray) -> tuple[int, ...]:
    """The voxel that the planes go through: in the slice, of those with ROI, that has the most false positives, the
    ROI's voxel nearest to its middle. Without a ROI, that of the false positives; without both, the middle.
    """
    there = roi if roi.any() else false
    if not there.any():
        return tuple(n // 2 for n in roi.shape)
    areas, errors = (np.count_nonzero(mask, axis=(1, 2)) for mask in (there, false))
    d = max(np.flatnonzero(areas).tolist(), key=lambda i: (errors[i], areas[i]))
    places = np.argwhere(there[d])
    h, w = places[((places - places.mean(0)) ** 2).sum(1).argmin()].tolist()
    return d, h, w
