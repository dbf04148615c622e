"""What the header of a file says beyond voxels and affine, kept for what is written on its grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Header:
    """What a file says about its grid, apart from the affine that is used.

    All matrices map a voxel index (d, h, w, 1) to mm, RAS+, whatever the units of the file.

    Attributes:
        format: Name of the file's format, such as "NIfTI".
        affine: The affine that was read, (4, 4). The header is written only beside it.
        sform: The NIfTI sform, (4, 4); None in other formats.
        sform_code: Its code; 0 where it does not count.
        qform: The NIfTI qform, (4, 4); None in other formats, and where it is no rotation.
        qform_code: Its code; 0 where it does not count.
        space_unit: Unit of length of a NIfTI file: "mm", "meter", "micron" or "unknown".
        time_unit: Unit of time of a NIfTI file.
        nrrd_space: The space of an NRRD file, such as "right-anterior-superior".
        nrrd_units: The unit of each of the three directions of an NRRD space; () without any.
        doubts: What the file leaves open, and the remedy: pairs for the warnings of `check`.
    """

    format: str
    affine: Matrix
    sform: Matrix | None = None
    sform_code: int = 0
    qform: Matrix | None = None
    qform_code: int = 0
    space_unit: str = "mm"
    time_unit: str = "unknown"
    nrrd_space: str = ""
    nrrd_units: tuple[str, ...] = ()
    doubts: tuple[tuple[str, str], ...] = ()

    def moved(self, index: np.ndarray) -> Header | None:
        """The header of a volume with other axes or another first voxel, on the same lattice.

        Args:
            index: (4, 4) from an index (d, h, w, 1) of the new volume to one of this.

        Returns:
            The header, its matrices moved; None where it cannot say where the new volume lies.
        """
        if np.array_equal(index, np.eye(4)):
            return self
        by_size_alone = self.sform is not None and not self.sform_code and not self.qform_code
        if by_size_alone:
            return None
        return replace(
            self,
            affine=as_matrix(np.array(self.affine) @ index),
            sform=None if self.sform is None else as_matrix(np.array(self.sform) @ index),
            qform=None if self.qform is None else as_matrix(np.array(self.qform) @ index),
        )

    def belongs_to(self, affine: np.ndarray) -> bool:
        """Whether an affine is the one that this header was read with.

        Args:
            affine: (4, 4) from (d, h, w, 1) to mm, RAS+.
        """
        return bool(np.allclose(self.affine, affine, rtol=1e-6, atol=1e-6))


def as_matrix(affine: np.ndarray) -> Matrix:
    """An array (4, 4) as nested tuples, which cannot change."""
    return tuple(tuple(float(x) for x in row) for row in affine)


def upright(affine: np.ndarray) -> bool:
    """Whether the three axes of an affine have lengths, and directions that differ.

    Args:
        affine: (4, 4), in mm.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or lengths.min() <= 1e-9:
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3)


def apart_vox(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Largest distance along an axis between voxels of the same index in two grids.

    Args:
        affine: (4, 4) from (d, h, w, 1) to mm.
        other: The same of the other grid.
        shape: Number of voxels (D, H, W) of both.

    Returns:
        The distance in voxels of the first grid, found at a corner.

    Example:
        >>> moved = np.diag([2.0, 1.0, 1.0, 1.0])
        >>> moved[0, 3] = 1.0
        >>> apart_vox(np.diag([2.0, 1.0, 1.0, 1.0]), moved, (4, 4, 4))
        0.5
    """
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in shape], [1]))).T
    difference = (other - affine) @ corners
    return float(np.abs(np.linalg.solve(affine[:3, :3], difference[:3])).max())
