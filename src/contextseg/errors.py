"""The one error class, and the remedy for a name that does not exist."""

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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the nearest known ones, or all of them.

    Args:
        name: What somebody wrote.
        known: The names that exist.

    Returns:
        A question with up to three similar names, or the list of all where none is similar.

    Example:
        >>> did_you_mean("supervized", ["supervised", "colab"])
        'did you mean supervised?'
    """
    from difflib import get_close_matches

    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(known)}"
