"""NIfTI in one file or a pair, Analyze and MGH: an array (C, D, H, W), its affine and its header.

Headers are nibabel's. The voxels of NIfTI files are unpacked here (with isal, twice as fast as
zlib), so that bytes after the stream, a header without an offset and extensions do no harm.

The affine is nibabel's choice: the sform where its code is above 0, else the qform where its code
is above 0, else one of the voxel sizes alone. Where that one cannot be inverted, it is the qform.
"""

from __future__ import annotations

import logging
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.disk import replacing
from contextseg.errors import ContextsegError
from contextseg.formats.content import ending, sibling
from contextseg.formats.header import Header, apart_vox, as_matrix, upright
from contextseg.formats.packed import (
    HEAD_BYTES,
    analyze_need,
    file_bytes,
    is_packed,
    mgh_need,
    unpacked,
)
from contextseg.grids import TOLERANCE_VOX
from contextseg.inputs import refuse_impossible
from contextseg.slabs import slabs

Read = tuple[np.ndarray, np.ndarray, Header | None]

NO_SIZE = "the affine in its header is degenerate: voxels have no size or no direction"
ONE_NUMBER = "save one number for each voxel, a file for each channel"
_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_UNITS = ("unknown", "meter", "mm", "micron")
_TIMES = {0: "unknown", 8: "sec", 16: "msec", 24: "usec", 32: "hz", 40: "ppm", 48: "rads"}
_EXACT = 2**24  # whole numbers up to here are exact in float32
_SILENT = logging.Logger("silent", logging.CRITICAL + 1)


# --- reading --------------------------------------------------------------------------------------


def read_nifti(path: Path, packed: bool) -> Read:
    """Read a NIfTI file that holds header and voxels.

    Args:
        path: The file.
        packed: Whether it is packed by gzip, whatever its name.

    Returns:
        The array (C, D, H, W), the affine (4, 4) from (d, h, w, 1) to mm, RAS+, and the header.
    """
    content = unpacked(path, _need) if packed else file_bytes(path)
    header = _header(path, content)
    least = header.single_vox_offset
    offset = float(header["vox_offset"])
    if offset == 0:
        if any(content[least - 4 : least]):
            _refuse_offset(path, "0, and its header has extensions")
        offset = least
    if not least <= offset < math.inf or offset != int(offset):
        _refuse_offset(path, f"{offset:g}, the header takes {least} bytes")
    return _of_voxels(path, header, content, int(offset))


def read_header_pair(path: Path, kind: str) -> Read:
    """Read a pair of a header (.hdr) and its voxels (.img): NIfTI's or Analyze's.

    Args:
        path: The header.
        kind: "NIfTI pair" or "Analyze".

    Returns:
        As `read_nifti`.

    Raises:
        ContextsegError: The voxels' file is missing or too short.
    """
    voxels = sibling(path, ".img") or sibling(path, ".img.gz")
    if voxels is None:
        expected = path.with_suffix(".img").name
        raise ContextsegError(
            path, f"the file of its voxels, {expected}, is missing", "copy both files of the pair"
        )
    head = unpacked(path, lambda *_: HEAD_BYTES) if is_packed(path) else file_bytes(path)

    def need(*_: Any) -> float:
        return analyze_need(head) if kind == "Analyze" else _need(path, head)

    content = unpacked(voxels, need) if is_packed(voxels) else file_bytes(voxels)
    if kind == "Analyze":
        return _read_analyze(path, head, content)
    header = _header(path, head)
    return _of_voxels(path, header, content, int(header["vox_offset"]))


def read_mgh(path: Path, packed: bool) -> Read:
    """Read an .mgh or .mgz file of FreeSurfer.

    Args:
        path: The file.
        packed: Whether it is packed by gzip, whatever its name.

    Returns:
        As `read_nifti`.
    """
    import nibabel

    content = bytes(unpacked(path, mgh_need) if packed else file_bytes(path))
    if len(content) < 284:
        raise EOFError(f"{len(content)} bytes, its header takes 284")
    refuse_impossible(path, mgh_need(path, content), packed)
    image = nibabel.MGHImage.from_bytes(content)
    need = 284 + math.prod(int(n) for n in image.shape) * image.get_data_dtype().itemsize
    if len(content) < need:
        raise EOFError(f"{len(content)} bytes of {need}")
    doubts: tuple[tuple[str, str], ...] = ()
    if int(image.header["goodRASFlag"]) != 1:
        doubts = (
            ("its header does not say how the patient lies", "see whether left and right are so"),
        )
    array = channels_first(np.asarray(image.dataobj), path)
    affine = np.asarray(image.affine, float)[:, [2, 1, 0, 3]]
    if not upright(affine):
        raise ContextsegError(path, NO_SIZE, "write the spacing into the header")
    return array, affine, Header("MGH", as_matrix(affine), doubts=doubts)


def from_image(image: Any, where: str | Path = "nibabel image") -> Read:
    """Array, affine and header of a nibabel image, as reading its file gives them.

    Args:
        image: A nibabel image of two or three dimensions, and one more for channels.
        where: Name of the image in error messages.

    Returns:
        The array (C, D, H, W), the affine (4, 4) from (d, h, w, 1) to mm, RAS+, and the header;
        None instead of it for classes other than NIfTI's.

    Raises:
        ContextsegError: The image holds colours or complex numbers, has other dimensions or a
            degenerate affine, or its file is damaged.
    """
    from nibabel.nifti1 import Nifti1Header

    raw = image.dataobj
    kind = image.get_data_dtype() if not isinstance(raw, np.ndarray) else raw.dtype
    _refuse_type(kind, where)
    array = channels_first(_scaled(raw), where)
    header = image.header
    homeless = image.affine is None
    best = np.array(header.get_best_affine() if homeless else image.affine, float)
    if isinstance(header, Nifti1Header):
        own = np.allclose(header.get_best_affine(), best, rtol=1e-5, atol=1e-5, equal_nan=True)
        affine, facts = _geometry(header, best, array.shape[1:], where)
        return array, affine, facts if own else None
    affine = _usable([best], array.shape[1], where)
    return array, affine[:, [2, 1, 0, 3]], None


def channels_first(array: np.ndarray, where: str | Path) -> np.ndarray:
    """An array in the order of the file, x, y, z and channels, as (C, D, H, W) in native bytes.

    Args:
        array: (W, H), (W, H, D), (W, H, D, C), or the vector image (W, H, D, 1, C). More axes of
            length 1 may follow.
        where: Name of the image in error messages.

    Raises:
        ContextsegError: The array has other dimensions, or an axis without voxels.
    """
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 5 and array.shape[3] == 1:
        array = array[..., 0, :]
    if not 2 <= array.ndim <= 4:
        raise ContextsegError(
            where, f"{array.ndim} dimensions", "save two or three, and one more for channels"
        )
    if 0 in array.shape:
        raise ContextsegError(
            where, f"a shape of {' x '.join(map(str, array.shape))}, without a voxel", "export it"
        )
    array = array.reshape(array.shape + (1,) * (4 - array.ndim))
    array = array.transpose(3, 2, 1, 0)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _need(path: Path, content: bytearray) -> float:
    """Bytes that a NIfTI file must have by its header."""
    header = _header(path, content)
    offset = float(header["vox_offset"])
    voxels = math.prod(int(n) for n in header.get_data_shape())
    return (offset if 0 < offset < 2**40 else 0) + voxels * header.get_data_dtype().itemsize


def _header(path: Path, content: bytearray) -> Any:
    """The NIfTI-1 or NIfTI-2 header at the beginning of a file, as nibabel mends it."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    second = 540 in {int.from_bytes(content[:4], order) for order in ("little", "big")}
    kind = Nifti2Header if second else Nifti1Header
    size = kind.template_dtype.itemsize
    if len(content) < size:
        raise EOFError(f"{len(content)} bytes, its header takes {size}")
    header = kind(bytes(content[:size]), check=False)
    offset = header["vox_offset"].copy()
    header.check_fix(_SILENT, error_level=1000)
    header["vox_offset"] = offset  # which nibabel would mend in silence

    dims = [int(n) for n in header["dim"]]
    if not 1 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 0:
        raise ContextsegError(
            path, f"its header says dim = {dims}, which is no shape", "export the file again"
        )
    code = int(header["datatype"])
    if code not in header._data_type_codes.value_set():
        raise ContextsegError(
            path,
            f"its header says datatype = {code}, which is no type of NIfTI",
            "export the file again",
        )
    _refuse_type(header.get_data_dtype(), path)
    return header


def _refuse_type(kind: np.dtype, where: str | Path) -> None:
    if kind.kind not in "biuf":
        name = "single bits" if kind.kind == "V" else "complex numbers"
        name = "colours" if kind.fields else name
        raise ContextsegError(where, f"its voxels are {name}", ONE_NUMBER)


def _refuse_offset(path: Path, what: str) -> None:
    raise ContextsegError(path, f"its header says vox_offset = {what}", "export the file again")


def _of_voxels(path: Path, header: Any, content: bytearray, offset: int) -> Read:
    """Array, affine and header of a NIfTI header and of the bytes that hold its voxels."""
    shape = tuple(int(n) for n in header.get_data_shape())
    kind = header.get_data_dtype()
    need = offset + math.prod(shape) * kind.itemsize
    if len(content) < need or offset < 0:
        raise EOFError(f"{len(content)} bytes of {need}")
    raw = np.frombuffer(content, kind, math.prod(shape), offset).reshape(shape, order="F")
    slope, inter = header.get_slope_inter()
    array = channels_first(_with_scale(raw, slope, inter), path)
    affine, facts = _geometry(header, header.get_best_affine(), array.shape[1:], path)
    return array, affine, facts


def _scaled(raw: Any) -> np.ndarray:
    """The numbers of a nibabel data object."""
    from nibabel.arrayproxy import ArrayProxy

    if type(raw) is not ArrayProxy:
        return np.asarray(raw)
    return _with_scale(raw.get_unscaled(), raw.slope, raw.inter)


def _with_scale(raw: Any, slope: float | None, inter: float | None) -> np.ndarray:
    """Scaled numbers in float32, half the size of nibabel's, where it can tell them apart."""
    slope, inter = 1.0 if slope is None else slope, inter or 0.0
    raw = np.asarray(raw)
    if (slope, inter) == (1, 0):
        return raw
    large = raw.dtype.itemsize > 4 if raw.dtype.kind == "f" else _far(raw, slope, inter)
    array = raw.astype(np.float64 if large else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        array *= slope
        array += inter
    return array


def _far(raw: np.ndarray, slope: float, inter: float) -> bool:
    """Whether scaled integers leave the range in which float32 holds every whole number."""
    info = np.iinfo(raw.dtype)
    if max(abs(n * slope + inter) for n in (int(info.min), int(info.max))) <= _EXACT:
        return False
    low, high = (float(raw.min()), float(raw.max())) if raw.size else (0.0, 0.0)
    return max(abs(low * slope + inter), abs(high * slope + inter)) > _EXACT


def _geometry(
    header: Any, best: np.ndarray, shape: tuple[int, ...], where: str | Path
) -> tuple[np.ndarray, Header]:
    """The affine (4, 4) from (d, h, w, 1) to mm and the `Header` of a NIfTI header."""
    codes = int(header["xyzt_units"])
    unit = _UNITS[codes & 7] if codes & 7 < len(_UNITS) else "unknown"
    mm = np.diag([_MM[unit]] * 3 + [1.0])
    qform = _qform(header)
    candidates = [best, *([] if qform is None else [qform])]
    affine = (mm @ _usable(candidates, shape[0], where))[:, [2, 1, 0, 3]]

    sform = np.array(header.get_sform(), float)
    facts = Header(
        format="NIfTI",
        affine=as_matrix(affine),
        sform=as_matrix((mm @ sform)[:, [2, 1, 0, 3]]),
        sform_code=int(header["sform_code"]),
        qform=None if qform is None else as_matrix((mm @ qform)[:, [2, 1, 0, 3]]),
        qform_code=int(header["qform_code"]),
        space_unit=unit,
        time_unit=_TIMES.get(codes & 56, "unknown"),
    )
    return affine, replace(facts, doubts=_doubts(facts, affine, shape))


def _qform(header: Any) -> np.ndarray | None:
    """The qform, whatever its code; None where it is no rotation."""
    from nibabel.spatialimages import HeaderDataError

    try:
        qform = np.array(header.get_qform(), float)
    except (HeaderDataError, ValueError):
        return None
    return qform if upright(qform) else None


def _usable(candidates: list[np.ndarray], slices: int, where: str | Path) -> np.ndarray:
    """The first affine that can be inverted, in the order (w, h, d).

    A single slice may lack its thickness.
    """
    for candidate in candidates:
        affine = np.array(candidate, float)
        if slices == 1 and not affine[:3, 2].any():
            affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] /= np.linalg.norm(affine[:3, 2]) or 1
        if upright(affine):
            return affine
    raise ContextsegError(where, NO_SIZE, "write the spacing into the header")


def _doubts(
    facts: Header, affine: np.ndarray, shape: tuple[int, ...]
) -> tuple[tuple[str, str], ...]:
    """What a NIfTI header leaves open, for the warnings of `check`."""
    if not facts.sform_code and not facts.qform_code:
        what = "neither sform nor qform has a code: programs guess where the patient's left is"
        return ((what, "give it the header of a file that is known to be right"),)
    if not facts.sform_code or not facts.qform_code:
        return ()
    if facts.qform is None:
        what = "its qform has a code but is no rotation; its sform is used"
        return ((what, "see which programs show the scan elsewhere"),)
    if not upright(np.array(facts.sform)):
        if shape[0] == 1:  # one slice may lack its thickness
            return ()
        what = "its sform has a code but cannot be inverted; its qform is used"
        return ((what, "see which programs show the scan elsewhere"),)
    apart = apart_vox(affine, np.array(facts.qform), shape)
    if apart <= TOLERANCE_VOX:
        return ()
    what = f"its sform and its qform lie up to {apart:.3g} voxels apart; the sform is used"
    remedy = "see that labels drawn in other programs lie where they should; both are kept"
    return ((what, remedy),)


def _read_analyze(path: Path, head: bytearray, content: bytearray) -> Read:
    """Analyze 7.5 and SPM's kinds of it, with a .mat file beside them if there is one."""
    import io

    import nibabel
    from nibabel.fileholders import FileHolder

    kinds = (nibabel.Spm2AnalyzeImage, nibabel.Spm99AnalyzeImage, nibabel.AnalyzeImage)
    kind = next((k for k in kinds if k.header_class.may_contain_header(bytes(head))), kinds[-1])
    header = kind.header_class(bytes(head[:348]), check=False)
    header.check_fix(_SILENT, error_level=1000)
    need = int(header["vox_offset"]) + math.prod(header.get_data_shape()) * (
        header.get_data_dtype().itemsize
    )
    if len(content) < need:
        raise EOFError(f"its voxels are {len(content)} bytes of {need}")
    _refuse_type(header.get_data_dtype(), path)

    files = {"header": io.BytesIO(header.binaryblock), "image": io.BytesIO(bytes(content))}
    matrix = sibling(path, ".mat")
    placed = matrix is not None and "mat" in dict(kind.files_types)
    files["mat"] = io.BytesIO(bytes(file_bytes(matrix)) if matrix and placed else b"")
    image = kind.from_file_map({name: FileHolder(fileobj=file) for name, file in files.items()})
    array = channels_first(_scaled(image.dataobj), path)
    affine = _usable([image.affine], array.shape[1], path)[:, [2, 1, 0, 3]]
    if placed:
        return array, affine, Header("Analyze", as_matrix(affine))
    # Written as NIfTI without codes, every program places it as it places the Analyze file.
    zooms = np.diag([*header.get_zooms()[:3], 1.0])[:, [2, 1, 0, 3]]
    what = "an Analyze header does not say which side is the patient's left"
    remedy = "see that left and right are so, and save it as NIfTI"
    facts = Header(
        "Analyze",
        as_matrix(affine),
        sform=as_matrix(np.zeros((4, 4))),
        qform=as_matrix(zooms),
        doubts=((what, remedy),),
    )
    return array, affine, facts


# --- writing --------------------------------------------------------------------------------------


def write_nifti(
    path: Path,
    array: np.ndarray,
    affine: np.ndarray,
    facts: Header | None,
    slope: float = 1.0,
) -> None:
    """Write a NIfTI-1 file, or NIfTI-2 where an axis has more than 32767 voxels.

    Args:
        path: The file; `.nii.gz` is packed.
        array: (D, H, W) or (C, D, H, W).
        affine: (4, 4) from (d, h, w, 1) to mm, RAS+.
        facts: The header of the scan that the array belongs to, on the same grid; its qform, sform,
            codes and units are written. None writes the affine as both, in mm.
        slope: What programs multiply the stored numbers by.
    """
    import nibabel
    from isal import igzip

    if array.ndim == 4 and len(array) > 1:
        data = np.moveaxis(array.T, -1, 3)
    else:
        data = array.reshape(array.shape[-3:]).T
    kind = nibabel.Nifti2Image if max(data.shape) > 32767 else nibabel.Nifti1Image
    header = kind.header_class()
    header.set_data_shape(data.shape)
    header.set_data_dtype(array.dtype)
    if facts is not None and facts.sform is not None:
        _write_header(header, facts, affine)
    else:
        _write_affine(header, affine)
    # The header is nibabel's of one voxel; the voxels follow in the order of the array.
    one = kind(np.zeros((1,) * data.ndim, array.dtype), None, header)
    head = kind.header_class(one.to_bytes()[: kind.header_class.sizeof_hdr], check=False)
    head.set_data_shape(data.shape)
    start = bytearray(head.binaryblock + bytes(4))
    if slope != 1:  # nibabel sets it from the array
        kind_of_slope, place = ("f", 112) if kind is nibabel.Nifti1Image else ("d", 176)
        struct.pack_into(f"={kind_of_slope}", start, place, slope)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        if ending(path) != ".nii.gz":
            _write_voxels(file, bytes(start), array)
            return
        with igzip.IGzipFile("", "wb", 1, file, mtime=0) as packed:
            _write_voxels(packed, bytes(start), array)


def _write_voxels(file: Any, start: bytes, array: np.ndarray) -> None:
    file.write(start)
    for channel in array.reshape(-1, *array.shape[-3:]):
        for part in slabs(channel.shape):
            file.write(np.ascontiguousarray(channel[part]).data)


def _write_header(header: Any, facts: Header, affine: np.ndarray) -> None:
    """The two affines with their codes, and the units, as the scan's own header has them."""
    to_unit = np.diag([1 / _MM[facts.space_unit]] * 3 + [1.0])
    order = [2, 1, 0, 3]
    header.set_xyzt_units(facts.space_unit, facts.time_unit)
    qform = affine if facts.qform is None else np.array(facts.qform)
    code = 0 if facts.qform is None else facts.qform_code
    header.set_qform((to_unit @ qform)[:, order], code)
    header.set_sform((to_unit @ np.array(facts.sform))[:, order], facts.sform_code)


def _write_affine(header: Any, affine: np.ndarray) -> None:
    """One affine as both; of sheared axes, which no qform can hold, as the sform alone."""
    from nibabel.spatialimages import HeaderDataError

    affine = affine[:, [2, 1, 0, 3]]
    header.set_xyzt_units("mm")
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    shape = header.get_data_shape()[:3]
    try:
        sheared = apart_vox(affine, header.get_qform(), shape) > TOLERANCE_VOX
    except (HeaderDataError, np.linalg.LinAlgError):
        sheared = True
    if sheared:
        header["qform_code"] = 0
