"""Whether context classes are worth their while, and how many: the CoLab paper's rule of thumb.

The paper (Li et al., IEEE TMI 2023): context labels are for over-segmentation, background that is
called ROI on unseen cases; t = 2 where such false positives lie far from the ROI, t = 4 where they
lie next to it. The paper names no thresholds; the numbers here are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BALANCE = 0.02
"""False positives are no problem where the mean precision exceeds the mean sensitivity by this.

Ours. Without context the paper's seven test tables (precision minus sensitivity, and what the best
CoLab gained in DSC, all in points) are: kidney tumour -11.3, 3.6; schwannoma -10.7, 4.7; stroke
-9.6, 4.3; colon tumour -8.6, 3.3; liver tumour 0.1, 8.1; pancreas 2.2, 0.4; pancreas tumour 10.1,
2.2. Any threshold from 0.001 to 0.022 asks for context where the gain was 3 points and more, and
nowhere else; 0 would miss the largest gain of all.
"""

FAR_SHARE = 0.5
"""Above this share of the false-positive volume in the far part, false positives lie far from the
ROI. Ours.
"""

TRAINED_DICE = 0.7
"""Below this mean Dice on training cases the network has hardly learnt them, and nothing follows
for others. Ours.
"""

UNSEEN_GAP = 0.05
"""False positives are a matter of unseen cases, as in the paper, where the precision on training
cases exceeds that on validation cases by this. Ours.
"""

FEW_CASES = 5
"""With fewer validation cases than this the numbers are an anecdote. Ours."""


@dataclass(frozen=True)
class Advice:
    """What to do about false positives.

    Attributes:
        context_classes: t; 1 is plain training.
        reason: Why, in one sentence.
        notes: What speaks against it, a sentence each.
    """

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
    cases: int = FEW_CASES,
    context_classes: int = 1,
) -> Advice:
    """What to do about the false positives of a network on validation cases.

    Args:
        sen: Mean sensitivity over the validation cases. None where no case has one.
        prc: Mean precision over the validation cases. None where no case has one.
        fp_near: False-positive voxels near the ROI, of all cases together.
        fp_far: False-positive voxels far from the ROI, of all cases together.
        training: "dsc" and "prc", means over training cases. None: unknown.
        cases: Number of validation cases.
        context_classes: t that the network was trained with, which is kept where there are few
            false positives.

    Returns:
        The advice.

    Example:
        >>> advise(0.9, 0.7, fp_near=10, fp_far=90).context_classes
        2
    """
    training = training or {}
    notes = _notes(training.get("dsc"), cases, context_classes)
    if fp_near + fp_far == 0 or prc is None:
        return Advice(context_classes, "There are no false positives.", tuple(notes))
    if sen is not None and prc >= sen + BALANCE:
        reason = f"Few false positives: precision, {prc:.3f}, is above sensitivity, {sen:.3f}."
        return Advice(context_classes, reason, tuple(notes))
    training_prc = training.get("prc")
    if training_prc is not None and training_prc < prc + UNSEEN_GAP:
        notes.append(
            f"Precision on training cases is {training_prc:.3f}, hardly higher: the network "
            "over-segments what it was trained on, too, and context labels are for unseen cases."
        )
    low = f"False positives matter: precision, {prc:.3f}"
    if sen is not None:
        low += f", is not clearly above sensitivity, {sen:.3f}"
    share = fp_far / (fp_near + fp_far)
    if share > FAR_SHARE:
        reason = f"{low}; {100 * share:.0f} % of their volume lies far from the ROI."
        return Advice(2, reason, tuple(notes))
    reason = f"{low}; {100 * (1 - share):.0f} % of their volume lies next to the ROI."
    return Advice(4, reason, tuple(notes))


def _notes(training_dsc: float | None, cases: int, context_classes: int) -> list[str]:
    """What speaks against any advice."""
    notes = []
    if cases < FEW_CASES:
        are = "s are" if cases > 1 else " is"
        notes.append(f"{cases} validation case{are} few: look at other folds too.")
    if context_classes > 1:
        notes.append(
            f"This network was trained with {context_classes} context classes: the numbers tell "
            "what is left to gain. Whether context helps is told by a plain run on the same fold."
        )
    if training_dsc is not None and training_dsc < TRAINED_DICE:
        notes.append(
            f"Mean Dice on training cases is {training_dsc:.3f}: train longer before you judge."
        )
    return notes
