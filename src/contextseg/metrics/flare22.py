"""The 13 organs of FLARE22: their names, label values and tolerances.

The challenge's script knows organs by their label value; here a class is known by its name, so
that label values may be others.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from contextseg.errors import ContextsegError

FLARE22_TOLERANCE_MM: dict[str, float] = {
    "liver": 5,
    "right kidney": 3,
    "spleen": 3,
    "pancreas": 5,
    "aorta": 2,
    "inferior vena cava": 2,
    "right adrenal gland": 2,
    "left adrenal gland": 2,
    "gallbladder": 2,
    "esophagus": 3,
    "stomach": 5,
    "duodenum": 7,
    "left kidney": 3,
}
"""The challenge's NSD tolerances by organ, in the order of its labels 1 to 13."""

TUBES = frozenset({"aorta", "inferior vena cava", "esophagus"})
"""The organs that are scored on the slices that the reference reaches."""

_OTHER_NAMES = {
    "rk": "right kidney",
    "kidney right": "right kidney",
    "lk": "left kidney",
    "kidney left": "left kidney",
    "ivc": "inferior vena cava",
    "vena cava": "inferior vena cava",
    "vena cava inferior": "inferior vena cava",
    "postcava": "inferior vena cava",
    "rag": "right adrenal gland",
    "right adrenal": "right adrenal gland",
    "adrenal gland right": "right adrenal gland",
    "lag": "left adrenal gland",
    "left adrenal": "left adrenal gland",
    "adrenal gland left": "left adrenal gland",
    "gall bladder": "gallbladder",
    "oesophagus": "esophagus",
}


def flare22_organ(name: str) -> str:
    """The organ that a class is called after.

    Args:
        name: Name of a class: the challenge's, its short form (RK, IVC), TotalSegmentator's
            (kidney_right) or the British one. Case, hyphens, underscores and what stands in
            parentheses do not matter.

    Returns:
        A key of `FLARE22_TOLERANCE_MM`; "" for a name of none.

    Example:
        >>> flare22_organ("Inferior_Vena_Cava (IVC)"), flare22_organ("kidney_right")
        ('inferior vena cava', 'right kidney')
        >>> flare22_organ("label_5")
        ''
    """
    words = re.sub(r"\(.*?\)", " ", name.lower()).replace("_", " ").replace("-", " ").split()
    plain = " ".join(words)
    plain = _OTHER_NAMES.get(plain, plain)
    return plain if plain in FLARE22_TOLERANCE_MM else ""


def flare22_tolerances(classes: Collection[str]) -> dict[str, float]:
    """The challenge's tolerance of each class.

    Args:
        classes: Names of classes; () gives {}.

    Returns:
        Tolerance in mm by class.

    Raises:
        ContextsegError: A class has none of the 13 organs' names.

    Example:
        >>> flare22_tolerances(["Liver", "LK"])
        {'Liver': 5, 'LK': 3}
    """
    require_flare22_organs(classes, "tolerance flare22", "there is no tolerance for")
    return {name: FLARE22_TOLERANCE_MM[flare22_organ(name)] for name in classes}


def require_flare22_organs(classes: Collection[str], where: str, what: str) -> None:
    """Refuse classes that cannot be told to be one of the 13 organs.

    Args:
        classes: Names of classes.
        where: What asks for it, for the message.
        what: What there is not for the others, for the message.

    Raises:
        ContextsegError: A class has none of their names.
    """
    others = [name for name in classes if not flare22_organ(name)]
    if others:
        named = ", ".join(others[:5]) + (" and so on" if len(others) > 5 else "")
        remedy = (
            "name the classes with --labels (a dataset.json, or a label description of ITK-SNAP) "
            f"as the challenge does ({', '.join(FLARE22_TOLERANCE_MM)}), and score those alone "
            "with --roi"
        )
        raise ContextsegError(where, f"{what} {named}, which is none of FLARE22's organs", remedy)
