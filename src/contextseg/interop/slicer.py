"""3D Slicer's segmentations (`.seg.nrrd`): label maps that say what their segments are.

A file holds one layer or several. In one layer the segments do not overlap and each has its value;
segments that overlap lie in different layers, where the same value may mean different segments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

from contextseg.disk import replacing
from contextseg.errors import ContextsegError, plural
from contextseg.formats import load, save
from contextseg.formats.nrrd import fields as header_fields
from contextseg.formats.nrrd import refuse_unsound_header
from contextseg.grids import Lattice, label_type
from contextseg.inputs import damage_named
from contextseg.interop.layers import Overlap, SegmentedVolume, merge
from contextseg.interop.segments import Colour, Segment, complete, default_colour

_FIELD = re.compile(r"Segment(\d+)_(\w+)")
_OWN = ("Name", "LabelValue", "Layer", "Color", "Tags", "Extent")
_REPRESENTATIONS = ("Segmentation_SourceRepresentation", "Segmentation_MasterRepresentation")
_HEADER_BYTES = 1 << 22


def is_segmentation(path: str | Path) -> bool:
    """Whether a file is a NRRD file with 3D Slicer's fields of segments, by its content.

    Args:
        path: A file of any kind, or a folder.

    Returns:
        False for everything else, also for a file that cannot be opened.
    """
    path = Path(path)
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            if file.read(4) != b"NRRD":
                return False
            header = file.read(_HEADER_BYTES)
    except OSError:
        return False
    header = re.split(rb"\r?\n\r?\n", header, maxsplit=1)[0]
    return re.search(rb"^Segment\d+_\w+:=", header, re.MULTILINE) is not None


def read_segmentation(path: str | Path, overlap: Overlap = "refuse") -> SegmentedVolume:
    """Read a segmentation of 3D Slicer.

    Several layers become one label map. Each segment keeps its value, unless two segments of
    different layers have the same one: then they are numbered 1, 2, 3 ... in the order of the file.

    Args:
        path: A `.seg.nrrd` file.
        overlap: What a voxel of several segments belongs to: the "first" or the "last" of them in
            the order of the file. "refuse" raises an error that names them. "layers" keeps the
            layers apart, with the values of the file.

    Returns:
        The label map and its segments.

    Raises:
        ContextsegError: The file cannot be read, segments overlap, a field is missing or says what
            cannot be, or the segmentation is fractional.
    """
    path = Path(path)
    layers, affine, header = load(path, labels=True)
    segments = _stored_segments(path, _fields(path), len(layers))
    if overlap == "layers":
        return SegmentedVolume(layers, affine, segments, header)
    if len(layers) == 1:
        return SegmentedVolume(layers[0], affine, segments, header)
    label = _merged(path, layers, segments, overlap)
    return SegmentedVolume(label, affine, _one_layer(segments), header)


def read_segments(path: str | Path) -> tuple[Segment, ...]:
    """The segments of a segmentation, with the values of the label map that `read_labels` gives.

    Only the header is read.

    Args:
        path: A `.seg.nrrd` file.

    Returns:
        The segments, in the order of the file.

    Raises:
        ContextsegError: As `read_segmentation`.
    """
    return _one_layer(_stored_segments(Path(path), _fields(Path(path))))


def write_segmentation(path: str | Path, volume: Lattice, segments: Iterable[Segment] = ()) -> Path:
    """Write a label map as a segmentation of 3D Slicer, atomically.

    Args:
        path: File to write, `NAME.seg.nrrd`.
        volume: A label map (D, H, W), or (C, D, H, W) with overlapping segments in C layers.
        segments: Its segments. A value of a label map (D, H, W) without one is called "label_V".

    Returns:
        `path`.

    Raises:
        ContextsegError: The ending is another, two segments have the same value in one layer, a
            value has no segment, or the disk cannot be written to.
    """
    path = Path(path)
    if not path.name.lower().endswith(".nrrd"):
        raise ContextsegError(path, "not the ending of a segmentation", "call it NAME.seg.nrrd")
    array = _whole(volume.array, path)
    layers = array if array.ndim == 4 else array[None]
    if array.ndim == 3:
        segments = complete(segments, np.unique(array))
    segments = tuple(segments)
    _refuse_ambiguous(path, segments, len(layers))
    _refuse_unnamed(path, layers, segments)

    with replacing(path) as temporary:
        save(temporary, array, np.asarray(volume.affine), getattr(volume, "header", None))
        content = temporary.read_bytes()
        temporary.write_bytes(_with_fields(content, _header(layers, segments)))
    return path


# --- fields ---------------------------------------------------------------------------------------


def _fields(path: Path) -> dict[str, str]:
    """The fields of a header that speak of segments."""
    import SimpleITK as sitk

    if not path.exists():
        raise ContextsegError(path, "the file does not exist", "check the path")
    refuse_unsound_header(path, "NRRD", header_fields(path))
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO")
    reader.SetFileName(str(path))
    what = "the header of the NRRD file cannot be read"
    with damage_named(path, "save the file in 3D Slicer again", what):
        reader.ReadImageInformation()
        keys = [key for key in reader.GetMetaDataKeys() if key.startswith("Segment")]
        return {key: _as_text(reader.GetMetaData(key)) for key in keys}


def _as_text(value: str) -> str:
    """A value of SimpleITK; old versions of 3D Slicer wrote some names in Windows-1252."""
    content = value.encode("utf-8", "surrogateescape")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _stored_segments(
    path: Path, fields: Mapping[str, str], layers: int | None = None
) -> tuple[Segment, ...]:
    """The segments as the file has them, with its values and layers.

    Files of 3D Slicer before version 4.11 have neither: segment n is value 1 of layer n.
    """
    for key in _REPRESENTATIONS:
        if "fractional" in fields.get(key, "").lower():
            remedy = "convert it to a binary labelmap in 3D Slicer's module Segmentations"
            raise ContextsegError(path, f"a fractional segmentation ({key})", remedy)

    parts: dict[int, dict[str, str]] = {}
    for key, text in fields.items():
        if match := _FIELD.fullmatch(key):
            parts.setdefault(int(match[1]), {})[match[2]] = text
    old = not any("LabelValue" in part or "Layer" in part for part in parts.values())
    segments = [_segment(path, n, part, old) for n, part in sorted(parts.items())]
    _refuse_ambiguous(path, segments, layers)
    return tuple(segments)


def _segment(path: Path, n: int, part: Mapping[str, str], old: bool) -> Segment:
    def number(name: str, otherwise: int, least: int) -> int:
        text = part.get(name, str(otherwise)).strip()
        if not re.fullmatch(r"\d+", text) or int(text) < least:
            what = f"Segment{n}_{name} says {text!r}, not a whole number from {least} up"
            raise ContextsegError(path, what, "save the file in 3D Slicer again")
        return int(text)

    tags = (tag.partition(":") for tag in part.get("Tags", "").split("|") if tag)
    return Segment(
        name=part.get("Name", "").strip() or part.get("ID", "") or f"Segment_{n + 1}",
        value=number("LabelValue", 1, 1),
        colour=_colour(path, n, part.get("Color")),
        layer=number("Layer", n if old else 0, 0),
        tags={name: text for name, _, text in tags},
        fields={name: text for name, text in part.items() if name not in _OWN},
    )


def _colour(path: Path, n: int, text: str | None) -> Colour | None:
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split())
    except ValueError:
        what = f"Segment{n}_Color says {text!r}, not three numbers from 0 to 1"
        raise ContextsegError(path, what, "save the file in 3D Slicer again") from None
    return red, green, blue


def _refuse_ambiguous(path: Path, segments: Sequence[Segment], layers: int | None) -> None:
    """Refuse two segments in one place, and a layer that does not exist."""
    places: dict[tuple[int, int], Segment] = {}
    for segment in segments:
        if segment.value < 1:
            what = f"segment {segment.name} has the value {segment.value}"
            raise ContextsegError(path, what, "give it a value from 1 up; 0 is the background")
        other = places.setdefault((segment.layer, segment.value), segment)
        if other is not segment:
            what = f"segments {other.name} and {segment.name} both have the value {segment.value}"
            remedy = "give each segment of a layer its own value"
            raise ContextsegError(path, f"{what} in layer {segment.layer}", remedy)
        if layers is not None and segment.layer >= layers:
            held = f"the file has {plural(layers, 'layer')}, counted from 0"
            what = f"segment {segment.name} lies in layer {segment.layer}; {held}"
            raise ContextsegError(path, what, "save the file in 3D Slicer again")


def _refuse_unnamed(path: Path, layers: np.ndarray, segments: Sequence[Segment]) -> None:
    """Refuse a value of several layers that no segment has: nobody knows what it is."""
    if len(layers) == 1:
        return
    for i, layer in enumerate(layers):
        known = {0, *(segment.value for segment in segments if segment.layer == i)}
        unknown = sorted(set(np.unique(layer).tolist()) - known)
        if unknown:
            values = ", ".join(f"{value:g}" for value in unknown[:5])
            what = f"layer {i} holds the value {values}, which no segment has"
            raise ContextsegError(path, what, "save the file in 3D Slicer again")


def _header(layers: np.ndarray, segments: Sequence[Segment]) -> dict[str, str]:
    """The fields to write."""
    header = dict.fromkeys(_REPRESENTATIONS, "Binary labelmap")
    header["Segmentation_ContainedRepresentationNames"] = "Binary labelmap|"
    header["Segmentation_ReferenceImageExtentOffset"] = "0 0 0"
    taken = {segment.fields.get("ID") for segment in segments}
    free = (name for name in (f"Segment_{i}" for i in count(1)) if name not in taken)
    for n, segment in enumerate(segments):
        own = {"NameAutoGenerated": "0", "ColorAutoGenerated": "0"} | dict(segment.fields)
        colour = segment.colour or default_colour(segment.value)
        own["ID"] = segment.fields.get("ID") or next(free)
        own["Name"] = segment.name
        own["Color"] = " ".join(f"{part:.6g}" for part in colour)
        own["LabelValue"] = str(segment.value)
        own["Layer"] = str(segment.layer)
        own["Extent"] = _extent(layers[segment.layer] == segment.value)
        own["Tags"] = "".join(f"{name}:{text}|" for name, text in segment.tags.items())
        header |= {f"Segment{n}_{name}": text for name, text in own.items()}
    return header


def _with_fields(content: bytes, header: Mapping[str, str]) -> bytes:
    """The content of a NRRD file with more fields; its channels are a list, as Slicer has them."""
    head, gap, voxels = content.partition(b"\n\n")
    head = head.replace(b"\nkinds: vector ", b"\nkinds: list ")
    texts = ((key, text.replace("\\", "\\\\").replace("\n", "\\n")) for key, text in header.items())
    lines = "".join(f"\n{key}:={text}" for key, text in texts)
    return head + lines.encode() + gap + voxels


def _extent(mask: np.ndarray) -> str:
    """First and last voxel of a mask along x, y and z; 0 and -1 where it is empty."""
    ends = []
    for axis in (2, 1, 0):
        held = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        ends += [int(held[0]), int(held[-1])] if len(held) else [0, -1]
    return " ".join(map(str, ends))


# --- layers ---------------------------------------------------------------------------------------


def _one_layer(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The segments after their layers became one, with values that differ."""
    if len({segment.value for segment in segments}) == len(segments):
        return tuple(replace(segment, layer=0) for segment in segments)
    return tuple(replace(segment, layer=0, value=n) for n, segment in enumerate(segments, 1))


def _merged(
    path: Path, layers: np.ndarray, segments: tuple[Segment, ...], overlap: Overlap
) -> np.ndarray:
    """One label map (D, H, W) of several layers."""
    _refuse_unnamed(path, layers, segments)
    merged = _one_layer(segments)
    masks = (
        (target, layers[segment.layer] == segment.value)
        for segment, target in zip(segments, merged)
    )
    reader = "interop.slicer.read_segmentation"
    return merge(masks, merged, layers.shape[1:], overlap, path, reader)


def _whole(array: np.ndarray, path: Path) -> np.ndarray:
    """A label map in a type that NRRD files and 3D Slicer know."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if array.dtype.kind not in "iu" or low < 0:
        what = f"a segmentation of {array.dtype} numbers from {low} up"
        raise ContextsegError(path, what, "give a label map of whole numbers from 0 up")
    return array.astype(label_type(high))
