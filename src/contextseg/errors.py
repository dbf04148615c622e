"""The one error class, the remedy for a name that does not exist, and counts in messages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class ContextsegError(Exception):
    """Something that a person can mend: where it is, what is wrong, and the remedy.

    Every error that input, settings or the disk can cause is one of these. The command line prints
    it as one message and exits with 1.

    Args:
        where: File, folder or setting that the error is about.
        what: What is wrong with it, without a full stop.
        remedy: What to do, in the imperative.

    Example:
        >>> print(ContextsegError("scan.nii.gz", "the file is truncated", "copy it again"))
        scan.nii.gz: the file is truncated. Remedy: copy it again
    """

    def __init__(self, where: str | Path, what: str, remedy: str) -> None:
        super().__init__(where, what, remedy)
        self.where = str(where)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. Remedy: {self.remedy}"


def plural(count: int, one: str, several: str = "") -> str:
    """A count with its noun, for messages and tables.

    Args:
        count: The count.
        one: The noun in the singular.
        several: The noun in the plural; "" for a regular one.

    Returns:
        The text.

    Example:
        >>> plural(1, "case"), plural(2, "class", "classes")
        ('1 case', '2 classes')
    """
    return f"{count} {one if count == 1 else several or one + 's'}"


_NEAREST = 5
_FEW = 20  # names that a person can still read


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the nearest known ones, or all of a few.

    Args:
        name: What somebody wrote.
        known: The names that exist.

    Returns:
        A question with up to five similar names. Where none is similar, the list of all of them, or
        of more than twenty the five nearest.

    Example:
        >>> did_you_mean("supervized", ["supervised", "colab"])
        'did you mean supervised?'
    """
    known = sorted(known)
    near = nearest(name, known, 0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if len(known) <= _FEW:
        return f"choose from {', '.join(known)}"
    return f"the nearest of {len(known)} are {', '.join(nearest(name, known))}"


def nearest(name: str, known: Iterable[str], similarity: float = 0.0) -> list[str]:
    """The names that are spelt most like another, nearest first; at most five.

    Args:
        name: What somebody wrote.
        known: The names that exist; of "part.name" the last part counts too.
        similarity: Least similarity, 0 to 1 (`difflib.SequenceMatcher.ratio`).

    Returns:
        The names; [] where none is similar enough.

    Example:
        >>> nearest("steps_per_epoch", ["steps", "save_every", "lr"], 0.5)
        ['steps']
    """
    from difflib import SequenceMatcher

    def alike(other: str) -> float:
        spelt = name.lower()
        spellings = {other.lower(), other.rpartition(".")[2].lower()}
        return max(SequenceMatcher(None, spelt, spelling).ratio() for spelling in spellings)

    ranked = sorted((-alike(other), other) for other in known if other)
    return [other for ratio, other in ranked if -ratio >= similarity][:_NEAREST]
