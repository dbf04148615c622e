"""Pictures: PNG, TIFF, BMP and JPEG, which know nothing of patients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from contextseg.disk import read_json
from contextseg.errors import ContextsegError
from contextseg.formats.parts import spacing_files
from contextseg.inputs import reason_of, refuse_impossible

FORMATS = ("PNG", "TIFF", "BMP", "JPEG")
LOSSY = (
    "a JPEG, whose compression changes intensities and blurs labels",
    "save it without loss from the original, such as .png; never store labels as JPEG",
)
"""What is in doubt about every JPEG, and the remedy."""


_ONE_AT_A_TIME = Lock()  # the filters of warnings belong to all threads


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A picture opened by Pillow, whose warnings name no file and are left out."""
    from PIL import Image

    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as picture:
            yield picture


def refuse_truncated(path: Path) -> None:
    """Raise OSError for a truncated picture, which ITK fills up with whatever lies in memory.

    Args:
        path: The picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with _opened(path) as picture:
            for i in range(_frames(picture)):
                picture.seek(i)
                picture.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        pass  # a kind or a size that Pillow does not know: ITK has read it


def refuse_impossible_size(path: Path) -> None:
    """Refuse a picture whose header asks for more pixels than its file can hold.

    Args:
        path: The picture.

    Raises:
        ContextsegError: It asks for more.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with _opened(path) as picture:
            need = math.prod(picture.size) * len(picture.getbands())
            frames = _frames(picture)
    except Image.DecompressionBombError as error:
        raise ContextsegError(path, reason_of(error), "export it again") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return  # a kind that Pillow does not know; ITK says what is wrong
    refuse_impossible(path, need, packed=True)
    if frames > path.stat().st_size:
        raise ContextsegError(path, f"its header asks for {frames} pages", "export it again")


def _frames(picture: Any) -> int:
    """Number of pages."""
    return int(getattr(picture, "n_frames", 1))


def mode(path: Path) -> str:
    """Pillow's name of what a pixel holds, such as "P" for a palette; "" where it cannot tell."""
    from PIL import Image, UnidentifiedImageError

    try:
        with _opened(path) as picture:
            return str(picture.mode)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        return ""


def read_palette(path: Path, labels: bool) -> np.ndarray:
    """A picture with a palette.

    Args:
        path: The picture, of Pillow's mode "P" or "PA".
        labels: Whether it is a label map: then the numbers of the colours are the labels, unless
            all colours are grey.

    Returns:
        (C, D, H, W) uint8, one slice for each page: the numbers of the colours, grey values, or
        red, green and blue.
    """
    pages, numbers = [], []
    with _opened(path) as picture:
        for i in range(_frames(picture)):
            picture.seek(i)
            numbers.append(
                np.asarray(picture)[..., 0] if picture.mode == "PA" else np.asarray(picture)
            )
            pages.append(np.asarray(picture.convert("RGB")))
    colours = np.stack(pages).transpose(3, 0, 1, 2)
    if (colours == colours[:1]).all():
        return colours[:1]
    return np.stack(numbers)[None] if labels else colours


def read_grey_with_alpha(path: Path) -> np.ndarray:
    """A grey picture with an alpha channel, which SimpleITK does not read.

    Args:
        path: The picture, of Pillow's mode "LA".

    Returns:
        (C, D, H, W) uint8: grey values, and alpha where it is not the same everywhere.

    Raises:
        ContextsegError: The picture has 16 bits a channel, of which Pillow keeps 8.
    """
    with open(path, "rb") as file:
        head = file.read(25)
    if head[1:4] == b"PNG" and head[24] == 16:
        raise ContextsegError(
            path, "a grey PNG of 16 bits with an alpha channel", "save it without the alpha channel"
        )
    with _opened(path) as picture:
        array = np.asarray(picture)
    return without_constant_alpha(array.transpose(2, 0, 1)[:, None], path)


def without_constant_alpha(array: np.ndarray, path: Path) -> np.ndarray:
    """The channels of a picture, less an alpha channel of one value, which says nothing.

    Args:
        array: (C, D, H, W).
        path: The picture.

    Returns:
        The array, or a view without its last channel.
    """
    alpha = len(array) in (2, 4) and mode(path) in ("LA", "RGBA", "La", "RGBa", "PA")
    if alpha and array[-1].size and (array[-1] == array[-1].flat[0]).all():
        return array[:-1]
    return array


def spacing(path: Path) -> list[float]:
    """Spacing (w, h, d) from the JSON file beside a picture, as nnU-Net writes it; else 1 mm.

    That file is `CASE.json`, {"spacing": [z, y, x]}. Dots per inch are no millimetres.

    Args:
        path: The picture.

    Returns:
        Three numbers in mm.

    Raises:
        ContextsegError: The file beside it is no JSON, or its spacing is not three numbers above 0.
    """
    for beside in spacing_files(path):
        content = read_json(beside) if beside.is_file() else None
        if not isinstance(content, dict) or "spacing" not in content:
            continue
        spacing = content["spacing"]
        try:
            found = np.array(spacing, float)
        except (TypeError, ValueError):
            found = np.empty(0)
        if found.shape != (3,) or not (np.isfinite(found).all() and found.min() > 0):
            what = f"its spacing is {str(spacing)[:80]}, not three numbers above 0"
            remedy = 'write {"spacing": [z, y, x]} in mm, such as [1, 2, 2]'
            raise ContextsegError(beside, what, remedy)
        return [float(s) for s in found[::-1]]
    return [1.0, 1.0, 1.0]
