"""Label maps of TotalSegmentator with all structures in one file (`--ml`), and their names.

Such a file says in an extension of its NIfTI header what its values mean, in XML of the Caret
format. Where the extension was lost, a table may name one of the published class maps:
`{"labels": "TotalSegmentator total"}`. Wasserthal et al., Radiology: AI 2023.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from contextseg.errors import ContextsegError, did_you_mean
from contextseg.interop.segments import Segment

_NIFTI = (".nii", ".nii.gz")
_MARK = "<CaretExtension>"


def is_named_nifti(path: str | Path) -> bool:
    """Whether a NIfTI file says what its label values are called.

    Args:
        path: A file of any kind, or a folder.
    """
    return bool(_extension(path))


def read_named_nifti(path: str | Path) -> tuple[Segment, ...]:
    """The structures that a NIfTI file of TotalSegmentator names, all of its class map.

    Args:
        path: A `.nii` or `.nii.gz` file.

    Returns:
        A segment for each, in the order of the file; () for a file without such an extension.

    Raises:
        ContextsegError: The extension is damaged, or two structures have one value.
    """
    text = _extension(path)
    if not text:
        return ()
    segments: dict[int, Segment] = {}
    try:
        for label in ElementTree.fromstring(text).iter("Label"):
            value = int(label.attrib["Key"])
            name = (label.text or "").strip()
            if value == 0 or not name:
                continue
            if value in segments:
                what = f"two structures have the label value {value} in its header"
                raise ContextsegError(path, what, "write it again with TotalSegmentator --ml")
            segments[value] = Segment(name, value, _colour(label.attrib))
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        what = f"the names of the label values in its header cannot be read ({error})"
        raise ContextsegError(path, what, "write it again with TotalSegmentator --ml") from error
    return tuple(segments.values())


def _colour(attributes: Any) -> tuple[float, float, float]:
    red, green, blue = (float(attributes.get(part, 1)) for part in ("Red", "Green", "Blue"))
    return red, green, blue


def _extension(path: str | Path) -> str:
    """The XML of the first such extension; "" where there is none, or no NIfTI file."""
    if not str(path).lower().endswith(_NIFTI) or not Path(path).is_file():
        return ""
    try:
        for content in _extensions(Path(path)):
            text = content.decode("utf-8", "replace").strip("\0 \n")
            if _MARK in text:
                return text
    except (OSError, EOFError, ValueError, OverflowError, struct.error, zlib.error):
        pass  # who reads its voxels says what is wrong with the file
    return ""


def _extensions(path: Path) -> Iterable[bytes]:
    """The extensions of a header, one after the other; the voxels are not read."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    opener: Any = gzip.open if packed else open
    with opener(path, "rb") as file:
        size = file.read(4)
        order = "<" if size in (struct.pack("<i", 348), struct.pack("<i", 540)) else ">"
        (length,) = struct.unpack(f"{order}i", size)
        if length not in (348, 540):
            return
        header = size + file.read(length - 4)
        if length == 348:
            end = int(struct.unpack(f"{order}f", header[108:112])[0])
        else:
            (end,) = struct.unpack(f"{order}q", header[168:176])
        flag = file.read(4)
        at = length + 4
        while len(flag) == 4 and flag[0] and at + 8 <= end:
            room, _ = struct.unpack(f"{order}ii", file.read(8))
            if room < 8 or at + room > end:
                return
            yield file.read(room - 8)
            at += room


# --- the published class maps ---------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return text.split()


_SPINE = [
    *(f"vertebrae_L{n}" for n in range(5, 0, -1)),
    *(f"vertebrae_T{n}" for n in range(12, 0, -1)),
    *(f"vertebrae_C{n}" for n in range(7, 0, -1)),
]
_RIBS = [f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)]
_FIRST = _words("spleen kidney_right kidney_left gallbladder liver stomach")
_LUNGS = _words(
    "lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right "
    "lung_lower_lobe_right"
)
_ADRENALS = _words("adrenal_gland_right adrenal_gland_left")


def _sides(names: str) -> list[str]:
    return [f"{name}_{side}" for name in names.split() for side in ("left", "right")]


_ILIAC = _sides("iliac_artery iliac_vena")
_SHOULDERS = _sides("humerus scapula clavicula")
_HIPS = _sides("femur hip")
_MUSCLES = _sides("gluteus_maximus gluteus_medius gluteus_minimus autochthon iliopsoas")

CLASS_MAPS: dict[str, tuple[str, ...]] = {
    "TotalSegmentator total": (
        *_FIRST,
        "pancreas",
        *_ADRENALS,
        *_LUNGS,
        *_words("esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder"),
        *_words("prostate kidney_cyst_left kidney_cyst_right sacrum vertebrae_S1"),
        *_SPINE,
        *_words("heart aorta pulmonary_vein brachiocephalic_trunk"),
        *_words("subclavian_artery_right subclavian_artery_left"),
        *_words("common_carotid_artery_right common_carotid_artery_left"),
        *_words("brachiocephalic_vein_left brachiocephalic_vein_right atrial_appendage_left"),
        *_words("superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein"),
        *_ILIAC,
        *_SHOULDERS,
        *_HIPS,
        "spinal_cord",
        *_MUSCLES,
        *_words("brain skull"),
        *_RIBS,
        *_words("sternum costal_cartilages"),
    ),
    "TotalSegmentator total_v1": (
        *_FIRST,
        *_words("aorta inferior_vena_cava portal_vein_and_splenic_vein pancreas"),
        *_ADRENALS,
        *_LUNGS,
        *_SPINE,
        *_words("esophagus trachea heart_myocardium heart_atrium_left heart_ventricle_left"),
        *_words("heart_atrium_right heart_ventricle_right pulmonary_artery brain"),
        *_ILIAC,
        *_words("small_bowel duodenum colon"),
        *_RIBS,
        *_SHOULDERS,
        *_HIPS,
        *_words("sacrum face"),
        *_MUSCLES,
        "urinary_bladder",
    ),
    "TotalSegmentator total_mr": (
        *_FIRST,
        "pancreas",
        *_ADRENALS,
        *_words("lung_left lung_right esophagus small_bowel duodenum colon urinary_bladder"),
        *_words("prostate sacrum vertebrae intervertebral_discs spinal_cord heart aorta"),
        *_words("inferior_vena_cava portal_vein_and_splenic_vein"),
        *_ILIAC,
        *_SHOULDERS,
        *_HIPS,
        *_MUSCLES,
        "brain",
    ),
}
"""Structures of TotalSegmentator's tasks by the name that a table gives, in the order of values.

The first has the value 1. "total" is that of version 2.
"""


def class_map(name: str, where: str | Path) -> dict[str, int]:
    """A published class map as a label table.

    Args:
        name: One of `CLASS_MAPS`.
        where: The file that names it, for the message.

    Returns:
        Value by name, background first.

    Raises:
        ContextsegError: There is no such class map.

    Example:
        >>> class_map("TotalSegmentator total", "labels.json")["liver"]
        5
    """
    if name not in CLASS_MAPS:
        what = f"there is no published class map {name!r}"
        raise ContextsegError(where, what, did_you_mean(name, CLASS_MAPS))
    return {"background": 0} | {title: i for i, title in enumerate(CLASS_MAPS[name], 1)}
