"""From a scan and its label maps to three upright slices with their contours, ready to draw.

Everything is turned to "IPL" first, so that the array's own order is the radiologist's: rows run
from head to feet (axial: from front to back), columns from the patient's right to the left
(sagittal: from front to back).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.errors import ContextsegError
from contextseg.grids import onto
from contextseg.volume import Volume, read, read_labels

UPRIGHT = "IPL"
PLANES = (
    ("axial", 0, "RLAP"),
    ("coronal", 1, "RLSI"),
    ("sagittal", 2, "APSI"),
)  # name, axis across, letters
CT_WINDOW = (-160.0, 240.0)  # HU: soft tissue
MARGIN_MM = 40.0  # of the field of view around the region: enough to know the place
NEAR_MM = 10.0  # a false positive no farther from its class is a border drawn too wide

Regions = Mapping[str, Sequence[int]]
Lines = list[np.ndarray]  # closed polylines, each (N, 2): x, y in mm


@dataclass(frozen=True)
class Plane:
    """One slice in a square field of view.

    Millimetres count from the field's upper left corner, x to the right, y downwards.

    Attributes:
        name: "axial", "coronal" or "sagittal".
        letters: What lies at the left, right, top and bottom edge: "RLAP" for an axial slice.
        field_mm: Side of the field.
        grey: (H, W) uint8, or (H, W, 3); it may reach beyond the field.
        box_mm: x, y, width and height that `grey` covers.
        reference: Class -> its outlines in the reference.
        prediction: Class -> its outlines in the prediction.
        false: Outlines of the false positives within 10 mm of the reference of their class, in all
            three dimensions.
        far: Outlines of the other false positives.
        missed: Outlines of what the prediction misses.
    """

    name: str
    letters: str
    field_mm: float
    grey: np.ndarray
    box_mm: tuple[float, float, float, float]
    reference: dict[str, Lines]
    prediction: dict[str, Lines]
    false: Lines
    far: Lines
    missed: Lines


@dataclass(frozen=True)
class _Scan:
    """An upright image with label maps on one grid, and what is shown of it.

    Attributes:
        image: The first channel.
        reference: Label map, or None.
        prediction: Label map, or None.
        spacing_mm: Distance between voxel centres.
        grey_range: Intensities that are black and white.
        classes: Class -> its label values.
        ignored: Label values of the reference that do not count.
        centre: The voxel that the planes go through.
        fields: Sizes of the field of view along each axis, in mm.
        middle: Its middle, in mm.
    """

    image: np.ndarray
    reference: np.ndarray | None
    prediction: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    grey_range: tuple[float, float]
    classes: Regions
    ignored: Sequence[int]
    centre: Sequence[int] = ()
    fields: Sequence[float] = ()
    middle: Sequence[float] = ()


def planes(case: Mapping[str, Any], regions: Regions, focus: str | None = None) -> list[Plane]:
    """The three planes of a case with the contours of its reference and its prediction.

    The field of view is a square that holds the region's box and 40 mm around it, at most the
    image. A plane in which the scan is one voxel thin is left out: a 2-D image has one.

    Args:
        case: "image" (a path, or one for each channel), and perhaps "reference" and "prediction"
            (label maps).
        regions: Class -> its label values. "background" is no class, and the voxels of "ignore"
            (and negative ones) are no errors.
        focus: The class through whose centre the planes go: its voxel nearest to its centre of
            mass, in the reference, or in the prediction where the reference has none. None, or a
            class that is not there: the largest class.

    Returns:
        The planes.

    Raises:
        ContextsegError: A file cannot be read, or the grids differ.
    """
    (result,) = side_by_side(case, [case.get("prediction")], regions, focus)
    if isinstance(result, ContextsegError):
        raise result
    return result


def side_by_side(
    case: Mapping[str, Any],
    predictions: Sequence[str | Path | None],
    regions: Regions,
    focus: str | None = None,
) -> list[list[Plane] | ContextsegError]:
    """`planes` of several predictions of a case, through one voxel and of one size.

    The region's box is that of the reference and all predictions together. All label maps are held
    at once.

    Args:
        case: "image" (a path, or one for each channel), and perhaps "reference".
        predictions: A label map each; None is no prediction.
        regions: Class -> its label values, as for `planes`.
        focus: The class through whose centre the planes go.

    Returns:
        The planes of each prediction. For one that cannot be read, or is on another grid, its
        error.

    Raises:
        ContextsegError: The image or the reference cannot be read, or their grids differ.
    """
    image = _image(case)
    reference = None if not case.get("reference") else _labels(case["reference"], image)
    maps: list[np.ndarray | ContextsegError | None] = []
    for path in predictions:
        try:
            maps.append(None if not path else _labels(path, image))
        except ContextsegError as problem:
            maps.append(problem)
    classes = {
        name: tuple(values)
        for name, values in regions.items()
        if name not in ("background", "ignore")
    }
    first = image.array[0]
    ignored = tuple(regions.get("ignore", ()))
    scan = _Scan(first, reference, None, image.spacing_mm, _window(first), classes, ignored)
    scan = _focused(scan, [m for m in (reference, *maps) if isinstance(m, np.ndarray)], focus)
    whole = [
        plane for plane in PLANES if min(n for i, n in enumerate(first.shape) if i != plane[1]) > 1
    ]
    return [
        m
        if isinstance(m, ContextsegError)
        else [_cut(replace(scan, prediction=m), plane) for plane in whole or PLANES[:1]]
        for m in maps
    ]


def _image(case: Mapping[str, Any]) -> Volume:
    paths = case.get("image")
    if not paths:
        raise ContextsegError(
            str(case.get("case")), "no image is given for this case", "name its file"
        )
    return read(*([paths] if isinstance(paths, (str, Path)) else paths)).oriented(UPRIGHT)


def _labels(path: str | Path, image: Volume) -> np.ndarray:
    """An upright label map on the image's grid, in one byte for each voxel where its values fit."""
    array = onto(read_labels(path), image, path).array
    return array.astype(np.uint8) if array.min() >= 0 and array.max() < 256 else array


def _focused(scan: _Scan, maps: Sequence[np.ndarray], focus: str | None) -> _Scan:
    """The scan with what is shown: the class of `focus`, in the first label map that has it."""
    extent = np.array(scan.image.shape) * scan.spacing_mm
    values = list(_focus_values(maps, scan.classes, focus))
    boxes, first = [], None
    for labels in maps:
        mask = np.isin(labels, values)
        if mask.any():
            boxes.append(_box(mask))
            first = mask if first is None else first
    if first is None:
        centre, fields, middle = tuple(n // 2 for n in scan.image.shape), extent, extent / 2
    else:
        low = np.min([box[0] for box in boxes], axis=0)
        high = np.max([box[1] for box in boxes], axis=0)
        fields = np.minimum((high - low) * scan.spacing_mm + 2 * MARGIN_MM, extent)
        centre = _nearest_to_centroid(first, scan.spacing_mm)
        middle = (high + low) / 2 * scan.spacing_mm
    return replace(scan, centre=centre, fields=fields.tolist(), middle=middle.tolist())


def _focus_values(maps: Sequence[np.ndarray], classes: Regions, focus: str | None) -> Sequence[int]:
    """Label values of `focus` where it is there, else of the largest class of the first map."""
    if (
        focus is not None
        and focus in classes
        and any(np.isin(labels, list(classes[focus])).any() for labels in maps)
    ):
        return classes[focus]
    for labels in maps if classes else ():
        present, counts = np.unique(labels, return_counts=True)
        size = {
            name: int(counts[np.isin(present, list(values))].sum())
            for name, values in classes.items()
        }
        largest = max(size, key=lambda name: size[name])  # the first of equals
        if size[largest]:
            return classes[largest]
    return ()


def _box(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first voxel and one past the last, on each axis."""
    hits = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return np.array([h[0] for h in hits]), np.array([h[-1] + 1 for h in hits])


def _nearest_to_centroid(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[int, ...]:
    points = np.argwhere(mask)
    away = (((points - points.mean(0)) * spacing_mm) ** 2).sum(1)
    return tuple(int(i) for i in points[away.argmin()])


def _window(image: np.ndarray) -> tuple[float, float]:
    """The grey range: soft tissue where the values are Hounsfield's (there is air, at -900 or
    less), else 1st to 99th percentile."""
    thin = tuple(slice(None, None, max(1, round(n / 128))) for n in image.shape)
    sample = np.asarray(image[thin], np.float32)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    if sample.min() <= -900:
        return CT_WINDOW
    low, high = np.percentile(sample, (1, 99))
    return (
        (float(low), float(high))
        if high > low
        else (float(sample.min()), max(float(sample.max()), low + 1.0))
    )


def _cut(scan: _Scan, plane: tuple[str, int, str]) -> Plane:
    """One of `PLANES`: a square of the larger of its two fields."""
    title, axis, letters = plane
    centre = scan.centre
    rows, columns = (i for i in range(3) if i != axis)
    field = float(max(scan.fields[rows], scan.fields[columns]))
    (top, above), (left, before) = (_part(scan, i, scan.middle[i], field) for i in (rows, columns))
    dy, dx = scan.spacing_mm[rows], scan.spacing_mm[columns]

    def section(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array, axis, 0)[centre[axis]][
            top, left
        ]  # a view: take() would copy the whole scan

    def lines(mask: np.ndarray) -> Lines:
        return [(line + 0.5) * (dx, dy) + (before, above) for line in outlines(mask)]

    low, high = scan.grey_range
    grey = np.nan_to_num(section(scan.image).astype(np.float32), nan=low)
    grey = np.clip((grey - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)
    box = (before, above, grey.shape[1] * dx, grey.shape[0] * dy)
    maps = [
        None if labels is None else section(labels) for labels in (scan.reference, scan.prediction)
    ]
    drawn: list[dict[str, Lines]] = []
    for labels in maps:
        outlined: dict[str, Lines] = {}
        if labels is not None:
            outlined = {
                name: lines(np.isin(labels, list(values))) for name, values in scan.classes.items()
            }
        drawn.append({name: closed for name, closed in outlined.items() if closed})
    false, missed = _errors(maps[0], maps[1], scan.classes, scan.ignored)
    window = [slice(at, at + 1) for at in centre]
    window[rows], window[columns] = top, left
    far = false & _far(scan, axis, window) if false.any() else false
    return Plane(
        title,
        letters,
        field,
        grey,
        box,
        drawn[0],
        drawn[1],
        lines(false & ~far),
        lines(far),
        lines(missed),
    )


def _part(scan: _Scan, axis: int, middle: float, field: float) -> tuple[slice, float]:
    """The voxels along `axis` inside the field around `middle`, and where they start in it, in mm.

    The field is moved to stay inside the image; an image smaller than it lies in its middle.
    """
    n = scan.image.shape[axis]
    mm = scan.spacing_mm[axis]
    room = n * mm - field
    start = room / 2 if room <= 0 else min(max(middle - field / 2, 0.0), room)
    first = max(int(start // mm), 0)
    last = min(int(-(-(start + field) // mm)), n)
    return slice(first, last), first * mm - start


def _errors(
    reference: np.ndarray | None,
    prediction: np.ndarray | None,
    classes: Regions,
    ignored: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the false positives and of what is missed; no voxel is in both.

    There are none where the reference is not annotated.
    """
    if reference is None or prediction is None:
        return np.zeros((0, 0), bool), np.zeros((0, 0), bool)
    false = np.zeros(reference.shape, bool)
    missed = np.zeros(reference.shape, bool)
    for values in classes.values():
        in_reference = np.isin(reference, list(values))
        in_prediction = np.isin(prediction, list(values))
        false |= in_prediction & ~in_reference
        missed |= in_reference & ~in_prediction
    annotated = ~np.isin(reference, list(ignored)) & (reference >= 0)
    return false & annotated, missed & ~false


def _far(scan: _Scan, axis: int, window: Sequence[slice]) -> np.ndarray:
    """Mask of the predicted voxels of a section that are over 10 mm from their class's reference.

    `window` is the section, one voxel thick along `axis`. Distances between voxel centres are exact
    up to 10 mm: they are computed in the box of the class in the section, with 10 mm more on every
    side.
    """
    shape = [part.stop - part.start for part in window]
    far = np.zeros(shape, bool)
    if scan.reference is None or scan.prediction is None:
        return far.squeeze(axis)
    for values in scan.classes.values():
        predicted = np.isin(scan.prediction[tuple(window)], list(values))
        if not predicted.any():
            continue
        reach = [int(NEAR_MM // mm) + 1 for mm in scan.spacing_mm]
        inner = [slice(int(low), int(high)) for low, high in zip(*_box(predicted))]
        starts = [max(w.start + i.start - r, 0) for w, i, r in zip(window, inner, reach)]
        stops = [w.start + i.stop + r for w, i, r in zip(window, inner, reach)]
        around = tuple(slice(start, stop) for start, stop in zip(starts, stops))
        reference = np.isin(scan.reference[around], list(values))
        here = tuple(
            slice(w.start + i.start - s, w.start + i.stop - s)
            for w, i, s in zip(window, inner, starts)
        )
        far[tuple(inner)] |= predicted[tuple(inner)] & _beyond(reference, scan.spacing_mm)[here]
    return far.squeeze(axis)


def _beyond(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Where the nearest voxel of a mask is more than 10 mm away; everywhere for an empty one."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return np.ones(mask.shape, bool)
    return distance_transform_edt(~mask, sampling=spacing_mm) > NEAR_MM * (1 + 1e-6)


def outlines(mask: np.ndarray) -> Lines:
    """The closed outlines of a mask, which cross half-way between pixels.

    Args:
        mask: (H, W) bool.

    Returns:
        Outlines, each (N, 2) as x, y in pixels; none of an empty mask.

    Example:
        >>> (line,) = outlines(np.ones((2, 3), bool))
        >>> line.min(0).tolist(), line.max(0).tolist()
        ([-0.5, -0.5], [2.5, 1.5])
    """
    from contourpy import contour_generator

    if not mask.any():
        return []
    lines = contour_generator(z=np.pad(mask, 1).astype(np.float64)).lines(0.5)
    return [_without_straight(np.asarray(line) - 1) for line in lines]


def _without_straight(line: np.ndarray) -> np.ndarray:
    """A polyline without the points that lie on the line between their neighbours."""
    before = np.diff(line[:-1], axis=0)
    after = np.diff(line[1:], axis=0)
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return line[np.concatenate([[True], turns, [True]])]
