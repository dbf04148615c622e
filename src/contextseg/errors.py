"""The one error class, the remedy for a name that does not exist, and counts in messages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def _readable(text: str, most: int) -> str:
    """Text of a length that a person reads; a name in a file may have any."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


_PLACE = 400
"""Most letters of a place in a message."""


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
        self.where = str(where)  # in full, so that code can read it
        self.what = _readable(what, 1500)
        self.remedy = _readable(remedy, 2000)

    def __str__(self) -> str:
        end = "" if self.what.endswith("\n") else ". "  # after a list of reasons on its own line
        where = self.where
        if len(where) > _PLACE:  # what a person sees keeps both ends, the folder's and the file's
            where = f"{where[: _PLACE // 2]}…{where[-_PLACE // 2 :]}"
        return f"{where}: {self.what}{end}Remedy: {self.remedy}"


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
_COMPARED = 64  # names that are all compared with a misspelt one


def did_you_mean(name: str, known: Iterable[str] | Spellings) -> str:
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
    spellings = known if isinstance(known, Spellings) else Spellings(known)
    names = spellings.names
    alike = spellings.like(name) if isinstance(known, Spellings) else names
    near = nearest(name, alike, 0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if len(names) <= _FEW:
        return f"choose from {', '.join(names)}"
    return f"the nearest of {len(names)} are {', '.join(nearest(name, alike))}"


class Spellings:
    """Many names, to find those that are spelt like another without comparing it with each.

    Of a few names all are compared. Of more, those that stand beside it in alphabetical order, read
    from the front and from the back, without regard to case and signs.

    Args:
        names: The names that exist.

    Example:
        >>> names = Spellings(f"case_{i:03d}" for i in range(500))
        >>> "case_017" in names.like("Case-017"), len(names.like("Case-017")) < 20
        (True, True)
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        self._orders: tuple[list[tuple[str, str]], ...] = ()

    def like(self, name: str) -> list[str]:
        """The names that may be spelt like another.

        Args:
            name: What somebody wrote.

        Returns:
            Some of the names; all of them where there are few.
        """
        if len(self.names) <= _COMPARED:
            return self.names
        if not self._orders:
            keys = [(_bare(other), other) for other in self.names]
            self._orders = sorted(keys), sorted((own[::-1], other) for own, other in keys)
        from bisect import bisect

        key = _bare(name)
        found: dict[str, None] = {}
        for order, own in zip(self._orders, (key, key[::-1])):
            place = bisect(order, (own, ""))
            found |= dict.fromkeys(n for _, n in order[max(0, place - 4) : place + 4])
        return list(found)


def _bare(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


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
