"""Whether context classes are worth their while, and how many: the CoLab paper's rule of thumb, with numbers of ours.

The paper (Li et al., IEEE TMI 2023): context labels are for over-segmentation, background that is called ROI on unseen
cases; t = 2 where such false positives lie far from the ROI, t = 4 where they lie next to it. It names no thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BALANCE = 0.02
"""How much larger than the mean sensitivity the mean precision must be for false positives to be no problem.

Ours. Without context the paper's seven test tables (precision minus sensitivity, and what the best CoLab gained in DSC,
all in points) are: kidney tumour -11.3, 3.6; schwannoma -10.7, 4.7; stroke -9.6, 4.3; colon tumour -8.6, 3.3; liver
tumour 0.1, 8.1; pancreas 2.2, 0.4; pancreas tumour 10.1, 2.2. Any threshold from 0.001 to 0.022 asks for context where
the gain was 3 points and more, and nowhere else; 0 would miss the largest gain of all.
"""

FAR_SHARE = 0.5
"""Above this share of the false-positive volume in the far part, false positives lie far from the ROI. Ours."""

LEARNT = 0.7
"""The mean Dice on training cases below which the network has hardly learnt them, and nothing follows for others. Ours.
"""

UNSEEN = 0.05
"""How much larger than on validation cases the precision on training cases must be for false positives to be a matter
of unseen cases, as in the paper. Ours.
"""

FEW = 5
"""With fewer validation cases than this the numbers are an anecdote. Ours."""


@dataclass(frozen=True)
class Advice:
    """`context_classes`: t, where 1 is plain training; `reason`: one sentence; `notes`: what speaks against it."""

    context_classes: int
    reason: str
    notes: tuple[str, ...] = ()


def advise(
    sen: float | None,
    prc: float | None,
    fp_near: int,
    fp_far: int,
    *,
    training: Mapping[str, float | None] | None = None,
    cases: int = FEW,
    context_classes: int = 1,
) -> Advice:
    """What to do about the false positives of a network on validation cases.

    sen, prc          means over the validation cases; None where no case has one.
    fp_near, fp_far   false-positive voxels of all of them together.
    training          the means over training cases: dsc, prc.   cases  how many validation cases.
    context_classes   those that the network was trained with, which are kept where there are few false positives.

    >>> advise(0.9, 0.7, fp_near=10, fp_far=90).context_classes
    2
    """
    notes = []
    if cases < FEW:
        notes.append(f"{cases} validation case{'s are' if cases > 1 else ' is'} few: look at other folds too.")
    if context_classes > 1:
        notes.append(
            f"This network was trained with {context_classes} context classes: the numbers tell what is left to gain. "
            "Whether context helps is told by a plain run on the same fold."
        )
    taught, precise = (training or {}).get("dsc"), (training or {}).get("prc")
    if taught is not None and taught < LEARNT:
        notes.append(f"Mean Dice on training cases is {taught:.3f}: train longer before you judge.")
    if fp_near + fp_far == 0 or prc is None:
        return Advice(context_classes, "There are no false positives.", tuple(notes))
    if sen is not None and prc >= sen + BALANCE:
        reason = f"Few false positives: precision, {prc:.3f}, is above sensitivity, {sen:.3f}."
        return Advice(context_classes, reason, tuple(notes))
    if precise is not None and precise < prc + UNSEEN:
        notes.append(
            f"Precision on training cases is {precise:.3f}, hardly higher: the network over-segments what it was "
            "taught, too, and context labels are for what it was not."
        )
    share = fp_far / (fp_near + fp_far)
    low = f"False positives matter: precision, {prc:.3f}"
    low += "" if sen is None else f", is not clearly above sensitivity, {sen:.3f}"
    if share > FAR_SHARE:
        return Advice(2, f"{low}; {100 * share:.0f} % of their volume lies far from the ROI.", tuple(notes))
    return Advice(4, f"{low}; {100 * (1 - share):.0f} % of their volume lies next to the ROI.", tuple(notes))
