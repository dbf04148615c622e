"""Folders of predictions: what is there, what is still to do, and what is written beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contextseg.console import Progress, say
from contextseg.data.components import write_change
from contextseg.data.layouts import Case, scans_in
from contextseg.data.unused import name_unused
from contextseg.disk import cases_in_table
from contextseg.errors import ContextsegError
from contextseg.memory_errors import out_of_memory
from contextseg.methods.presence import write_flags
from contextseg.predict.memory import REMEDY
from contextseg.predict.record import RECORD
from contextseg.predictor.segmentation import (
    CLASS_FILES,
    CONTEXT_MAPS,
    PROBABILITIES,
    Segmentation,
    beside,
    file_name,
)
from contextseg.predictor.statistics import STATISTICS, STATISTICS_COLUMNS


@dataclass(frozen=True)
class Extras:
    """What is written beside label maps.

    Attributes:
        probabilities: The probability of each class on the scan's grid.
        contexts: The context classes of the method.
        statistics: Volume and intensities of each class.
        class_files: A mask for each class.
    """

    probabilities: bool = False
    contexts: bool = False
    statistics: bool = False
    class_files: bool = False

    def done(self, out: Path, classes: Sequence[str]) -> bool:
        """Whether a case is done: its label map is there, and all that is asked for beside it.

        Args:
            out: The label file.
            classes: Names of the classes that are segmented.

        Returns:
            True where nothing is left to do.
        """
        expected = [out]
        if self.probabilities:
            expected += [beside(out, PROBABILITIES) / f"{file_name(c)}.nii.gz" for c in classes]
        if self.contexts:
            expected.append(out.parent / CONTEXT_MAPS / out.name)
        if self.class_files:
            expected += [beside(out, CLASS_FILES) / f"{file_name(c)}.nii.gz" for c in classes]
        if not all(path.exists() for path in expected):
            return False
        name = beside(out, "").name
        table = out.parent / STATISTICS
        return not self.statistics or name in cases_in_table(table, STATISTICS_COLUMNS)


NO_EXTRAS = Extras()
"""Label maps, and what the settings of prediction ask for."""


def part_of(cases: Sequence[Case], part: str) -> tuple[Case, ...]:
    """The cases of one part, such as every fourth.

    Args:
        cases: All cases.
        part: "2/4" for the second of four parts; "" for all.

    Returns:
        Those of the part; all parts together are all cases, each once.

    Raises:
        ContextsegError: That is no part.

    Example:
        >>> part_of("abcde", "2/2")
        ('b', 'd')
    """
    if not part:
        return tuple(cases)
    number, slash, of = part.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        remedy = "write 1/4 for the first of four parts"
        raise ContextsegError(f"--part {part}", "not a part", remedy)
    return tuple(cases)[int(number) - 1 :: int(of)]


def cases_to_segment(images: str | Path, output: Path) -> tuple[Case, ...]:
    """The cases of a scan, a folder or a data set, for an output folder that holds none of them.

    What is no scan is named on stderr. An output folder inside the folder of scans is no scan.

    Args:
        images: A scan, a folder of scans, or the folder of a data set.
        output: Where the label maps will go.

    Returns:
        The cases.

    Raises:
        ContextsegError: There is no scan, or the output folder holds the scans or their labels.
    """
    target = output.resolve()
    remedy = "choose a folder of its own for the predictions"
    if Path(images).resolve() == target:
        raise ContextsegError(output, "the output folder is the folder of the scans", remedy)
    cases, unused = scans_in(images)
    if (output / RECORD).exists():  # one of an earlier call, inside the folder of the scans
        cases = tuple(case for case in cases if not _lies_in(case.images[0], target))
        if not cases:
            raise ContextsegError(images, "there is no scan but predictions", "give the scans")
    for case in cases:
        for path in (*case.images, *([case.label] if case.label else [])):
            if _lies_in(path, target) or (path.is_dir() and _lies_in(output, path.resolve())):
                what = f"the output folder holds the scans or their labels ({path.name})"
                raise ContextsegError(output, what, remedy)
    if line := name_unused(path for path in unused if path.resolve() != target):
        say(f"{images}: {line}")
    return cases


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, or a folder is it; links of files are not followed."""
    return folder in (path.parent.resolve(), path.resolve())


def write_prediction(segmentation: Segmentation, out: Path, class_files: bool = False) -> None:
    """Write a label map with all that belongs to it; the label map last, since it says "done".

    Args:
        segmentation: What a predictor made of a case.
        out: The label file. The tables of its folder get the rows of the case.
        class_files: Whether a mask of each class is written, too.
    """
    if segmentation.removed is not None:
        write_change(out.parent, segmentation.name, segmentation.removed)
    if segmentation.presence is not None:
        write_flags(out.parent, segmentation.name, segmentation.presence)
    if class_files:
        segmentation.save_classes(out)
    segmentation.save(out)


def raise_failed(failed: Mapping[str, str], cases: int) -> None:
    """Raise failures of several cases as one `ContextsegError`; nothing if there is none.

    Args:
        failed: Why each case failed, by name.
        cases: Number of cases in all.

    Raises:
        ContextsegError: A case failed; the message has every reason.
    """
    if not failed:
        return
    reasons = "".join(f"\n  {why}" for why in failed.values())
    what = f"{len(failed)} of {cases} cases could not be segmented:{reasons}\n"
    raise ContextsegError(", ".join(failed), what, "mend or remove them; all others are done")


def segment_missing(
    cases: Sequence[Case],
    folder: Path,
    ending: str,
    segment: Callable[[Case, Path], object],
    progress: Progress = lambda *_: None,
    is_done: Callable[[Path], bool] = Path.exists,
) -> dict[str, str]:
    """Segment each case whose label map is not there yet; a case that fails does not stop others.

    Args:
        cases: What to segment. An empty sequence does nothing.
        folder: Where the label maps go, `folder`/CASE`ending`.
        ending: Ending of the label maps, such as ".nii.gz".
        segment: Called with a case and the path of its label map, which it writes last.
        progress: Called with (done, of) before and after each case.
        is_done: Whether a case is done, given its label file.

    Returns:
        Why cases failed, by name.
    """
    failed = {}
    for done, case in enumerate(cases):
        out = folder / f"{case.name}{ending}"
        progress(done, len(cases))
        if not is_done(out):
            try:
                with out_of_memory(case.name, REMEDY):
                    segment(case, out)
            except ContextsegError as error:
                failed[case.name] = str(error)
        progress(done + 1, len(cases))
    return failed
