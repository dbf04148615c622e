"""Segments: what a value of a label map is called, and how a viewer shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from contextseg.picture import LABEL_COLOURS

Colour = tuple[float, float, float]
"""Red, green and blue, each from 0 to 1."""


@dataclass(frozen=True)
class Segment:
    """A class of a label map, as 3D Slicer and ITK-SNAP describe it.

    Attributes:
        name: Its name.
        value: Its value in the label map, 1 or more.
        colour: Its colour; None for that of `default_colour`.
        layer: The channel of a label map (C, D, H, W) that it lies in. 0 in one of (D, H, W).
        tags: 3D Slicer's tags by name, such as "TerminologyEntry".
        fields: More fields of 3D Slicer, such as "ID", kept as they are.
        opacity: Opacity in ITK-SNAP, from 0 to 1.
        visible: Whether ITK-SNAP shows it.
        in_mesh: Whether ITK-SNAP shows it in 3-D.
    """

    name: str
    value: int
    colour: Colour | None = None
    layer: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    opacity: float = 1.0
    visible: bool = True
    in_mesh: bool = True

    @property
    def terminology(self) -> str:
        """3D Slicer's terminology entry; "" where there is none."""
        return self.tags.get("TerminologyEntry", "")


def default_colour(value: int) -> Colour:
    """The colour of a value that has none of its own: the one that our pictures give it.

    Args:
        value: A value of a label map, 1 or more.

    Returns:
        Its colour.

    Example:
        >>> default_colour(8)
        (1.0, 1.0, 1.0)
    """
    text = LABEL_COLOURS[(value - 1) % len(LABEL_COLOURS)].lstrip("#")
    red, green, blue = (int(text[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


def class_segments(
    classes: Mapping[str, int],
    colours: Mapping[str, Colour] = MappingProxyType({}),
    terminology: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Segment, ...]:
    """The segments of classes.

    Args:
        classes: Value of each class by name, without the background.
        colours: Colour of a class by name, where it is known.
        terminology: 3D Slicer's terminology entry of a class by name, where it is known.

    Returns:
        A segment for each class.

    Example:
        >>> class_segments({"liver": 1}, {"liver": (0.8, 0.3, 0.2)})[0].colour
        (0.8, 0.3, 0.2)
    """
    entries = {name: {"TerminologyEntry": entry} for name, entry in terminology.items() if entry}
    return tuple(
        Segment(name, value, colours.get(name), tags=entries.get(name, {}))
        for name, value in classes.items()
    )


def named(value: int) -> Segment:
    """The segment of a value that nothing describes: it is called "label_V".

    Args:
        value: The value.

    Returns:
        The segment.

    Example:
        >>> named(3).name
        'label_3'
    """
    return Segment(f"label_{value}", value)


def complete(segments: Iterable[Segment], values: Iterable[int]) -> tuple[Segment, ...]:
    """Segments with one for each value that has none yet.

    Args:
        segments: Known segments.
        values: Values of a label map; 0 and negative ones have no segment.

    Returns:
        The known segments, and then those of the other values, in ascending order.
    """
    segments = tuple(segments)
    missing = {int(v) for v in values if v > 0} - {segment.value for segment in segments}
    return (*segments, *(named(value) for value in sorted(missing)))
