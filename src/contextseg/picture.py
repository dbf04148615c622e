"""One slice of a scan or a label map as a small PNG, for notebooks."""

from __future__ import annotations

import io

import numpy as np

_PICTURE_SIDE = 256  # pixels
_FEW_VALUES = 64  # a slice of whole numbers with no more different values is one of labels
LABEL_COLOURS = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF",
)  # fmt: skip
_UNLABELLED = (70, 70, 70)


def axial_png(array: np.ndarray, spacing_mm: tuple[float, float, float], labels: bool) -> bytes:
    """One axial slice as a PNG: front up, the patient's right at the left, as radiologists see it.

    An image is shown in grey between its 0.5 and 99.5 percentiles, a label map in colours.

    Args:
        array: (D, H, W) with axes along SPL: to the head, to the back, to the left.
        spacing_mm: Voxel size along D, H and W.
        labels: Whether the array is a label map. Then the slice with most labelled voxels is
            shown; otherwise the middle one.

    Returns:
        The content of a PNG file, its longer side 256 pixels.
    """
    from PIL import Image

    plane = array[_fullest_slice(array)] if labels else array[len(array) // 2]
    if labels and len(np.unique(plane)) <= _FEW_VALUES:
        pixels, smooth = _in_colours(plane), Image.Resampling.NEAREST
    else:
        pixels, smooth = _in_grey(plane), Image.Resampling.BILINEAR

    size_mm = np.array(plane.shape) * spacing_mm[1:]
    height, width = np.maximum(np.rint(size_mm * _PICTURE_SIDE / size_mm.max()), 1).astype(int)
    picture = Image.fromarray(pixels).resize((int(width), int(height)), smooth)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _fullest_slice(label: np.ndarray) -> int:
    """The slice with most labelled voxels; the middle one where nothing is labelled."""
    voxels = np.array([np.count_nonzero(plane > 0) for plane in label])
    return int(voxels.argmax()) if voxels.any() else len(label) // 2


def _in_grey(plane: np.ndarray) -> np.ndarray:
    """(H, W) uint8."""
    x = np.nan_to_num(plane.astype(np.float64))
    low, high = np.percentile(x, (0.5, 99.5))
    return np.rint(255 * np.clip((x - low) / (high - low or 1), 0, 1)).astype(np.uint8)


def _in_colours(plane: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: black background, dark grey where nothing is labelled."""
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in LABEL_COLOURS])
    label = plane.astype(np.int64)
    pixels = colours[(label - 1) % len(colours)]
    pixels[label == 0] = 0
    pixels[label < 0] = _UNLABELLED
    return pixels.astype(np.uint8)
