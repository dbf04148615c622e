"""What to do next: the slice worth labelling, its place in other programs, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.propagation.labelled import LabelledSlices, plane_of
from contextseg.volume import Volume

if TYPE_CHECKING:
    from contextseg.propagation.filling import Filled


def suggest_slice(filled: Filled) -> tuple[int, str]:
    """The next slice worth labelling: the middle of the longest stretch without a label.

    A stretch lies between two labelled slices, or reaches from the outermost one as far as
    something was filled, and then counts twice, since nothing is known at its other end. Of equally
    long stretches the least certain one is taken; those that hold nothing do not count. Where there
    is none, it is the slice after the last labelled one, or before the first. [Ours: the least
    certain slice of all, by the network's own confidence, helped less in our trials
    (docs/propagation.md).]

    Args:
        filled: The filled scan. Slices that are labelled in part count as the others do.

    Returns:
        (slice number, the reason in words).

    Raises:
        ContextsegError: If every slice is labelled.
    """
    confidence, labelled = filled.confidence, filled.labelled
    n, known = len(confidence), _anchors(labelled)
    if len(known) == n:
        raise ContextsegError("labels", "every slice is labelled", "there is nothing to suggest")
    stretches = _open_stretches(filled.label, labelled.axis, known)
    first, last = known[0], known[-1]
    if not stretches:
        beyond = last + 1 if last + 1 < n else first - 1
        why = "all slices between the labelled ones are labelled; "
        return beyond, why + "the structure may go on beyond them"
    certain = np.nan_to_num(confidence)
    _, a, b = max(stretches, key=lambda s: (s[0], -float(certain[s[1] + 1 : s[2]].mean())))
    place = (a + b) // 2
    why = f"the longest stretch without a label is from {a + 1} to {b - 1}"
    if not np.isnan(confidence[place]):
        why += f"; a Dice of {confidence[place]:.2f} is expected"
    return place, why


def describe_slice(volume: Volume, axis: int, i: int) -> str:
    """A slice as this program, ITK-SNAP and 3D Slicer name it.

    Args:
        volume: The scan or label map.
        axis: What the slice is across.
        i: Its number, from 0.

    Returns:
        Its plane and number; its number in ITK-SNAP, which counts from 1; and the offset of its
        middle, in mm along the axis of the patient, that 3D Slicer shows.

    Example:
        >>> volume = Volume(np.zeros((9, 5, 5)), np.diag([2.5, 1.0, 1.0, 1.0])[[2, 1, 0, 3]])
        >>> describe_slice(volume, 0, 3)
        'axial slice 3 (ITK-SNAP: 4 of 9; 3D Slicer: S 7.5 mm)'
    """
    plane = plane_of(volume, axis)
    middle = np.array([(n - 1) / 2 for n in volume.shape] + [1.0])
    middle[axis] = i
    row, letter = {"axial": (2, "S"), "coronal": (1, "A"), "sagittal": (0, "R")}[plane]
    mm = float((volume.affine @ middle)[row])
    count = volume.shape[axis]
    return f"{plane} slice {i} (ITK-SNAP: {i + 1} of {count}; 3D Slicer: {letter} {mm:.1f} mm)"


def find_gaps(labels: np.ndarray, labelled: LabelledSlices, network: bool) -> list[str]:
    """What was not filled, or may not be what was meant, in words, with what to do.

    Args:
        labels: (n, H, W), filled; the slices first.
        labelled: The labelled slices.
        network: Whether a network filled it.

    Returns:
        One sentence or two for each. [] where all is well.
    """
    notes = []
    for value in labelled.classes:
        notes += _gaps_of_class(labels, labelled, value, network)
    known = _anchors(labelled)
    if len(known) > 3 and known[-1] - known[0] + 1 == len(known):
        notes.append(
            f"slices {known[0]} to {known[-1]} are all labelled, and nothing lies between them to "
            "fill; of a filled map that was corrected, give --previous"
        )
    for plane, numbers in labelled.crossing.items():
        notes.append(
            f"labels of two orientations: {plane} {_slices(numbers)} kept as drawn, and known in "
            "part in the slices that are filled"
        )
    return notes


def _gaps_of_class(
    labels: np.ndarray, labelled: LabelledSlices, value: int, network: bool
) -> list[str]:
    known = labelled.known_for(value)
    holding = [i for i in known if (labelled.slices[i] == value).any()]
    present = (labels == value).any((1, 2))
    others = [i for i in np.flatnonzero(present).tolist() if i not in holding]
    if len(holding) == 1 and not others:
        remedy = "label it in another slice, or give --way nearest"
        remedy += "" if network else " or a network (--model)"
        if len(labelled.slices) > 1 and len(known) == 1:
            remedy += "; --complete if the other labelled slices say that it is not there"
        return [
            f"nothing was filled of class {value}, which slice {holding[0]} alone holds: {remedy}"
        ]
    notes = []
    for a, b in pairwise(holding):
        absent = [i for i in known if a < i < b]
        gap = [i for i in range(a + 1, b) if not present[i] and i not in absent]
        if absent:
            notes.append(
                f"class {value} is in slices {a} and {b}, and not in labelled {_slices(absent)} "
                "between them; it ends on the way"
            )
        elif gap:
            remedy = "label one of them" + (
                ", or look whether the network is trained" if network else ""
            )
            notes.append(
                f"class {value} was not found in {_slices(gap)}, though {a} and {b} hold it: "
                f"{remedy}"
            )
    if (
        network
        and not others
        and len(holding) > 1
        and not notes
        and holding[-1] - holding[0] >= len(holding)
    ):
        notes.append(f"the network filled nothing of class {value}: is it trained on such scans?")
    return notes


def _slices(numbers: Iterable[int]) -> str:
    """Slice numbers in words.

    >>> _slices([5]), _slices([5, 6, 7, 9])
    ('slice 5', 'slices 5 to 7, 9')
    """
    runs: list[list[int]] = []
    for i in sorted(numbers):
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    words = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    single = len(runs) == 1 and len(runs[0]) == 1
    return ("slice " if single else "slices ") + ", ".join(words)


def _anchors(labelled: LabelledSlices) -> list[int]:
    """Slices that count as labelled; lines of other orientations do not."""
    if not labelled.crossing:
        return sorted(labelled.slices)
    return [i for i, label in sorted(labelled.slices.items()) if not (label == IGNORE).any()]


def _open_stretches(label: Volume, axis: int, known: list[int]) -> list[tuple[int, int, int]]:
    """(length that counts, the slice before, the slice after) of each stretch to label."""
    present: Any = np.moveaxis(label.array, axis, 0).any((1, 2))
    stretches = [
        (b - a, a, b) for a, b in pairwise(known) if b - a > 1 and present[a : b + 1].any()
    ]
    first, last = known[0], known[-1]
    reached = np.flatnonzero(present)
    if len(reached) and reached[-1] > last:
        stretches.append((2 * (int(reached[-1]) - last), last, int(reached[-1]) + 1))
    if len(reached) and reached[0] < first:
        stretches.append((2 * (first - int(reached[0])), int(reached[0]) - 1, first))
    return stretches
