"""The whole job for a data set of the paper: arrange a download, compare, set beside the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from contextseg.cells import read_table_file
from contextseg.console import ProgressBar, no_progress_bar
from contextseg.disk import write_text
from contextseg.errors import ContextsegError
from contextseg.studies.compare import Comparison, compare, parse_grid
from contextseg.studies.compare.rescored import check_scoring
from contextseg.studies.compare.written import results_folder
from contextseg.studies.reproduce.arrange import ANATOMY, Arranged, arrange
from contextseg.studies.reproduce.beside import (
    beside_csv,
    beside_published,
    departures,
    kept_departures,
    trial_note,
)
from contextseg.studies.reproduce.command import (
    CONVENTION,
    SEEDS,
    arranged_text,
    command_line,
    describe_reproduction,
    listing,
    paper_settings,
    roi_words,
)
from contextseg.studies.reproduce.rows import method_rows, select_rows
from contextseg.studies.reproduce.table import Reproduction, find_reproduction

COMPARED = "compared"
BESIDE = "beside"


@dataclass(frozen=True, repr=False)
class Reproduced:
    """How far the reproduction of a data set is. `str` of it is what the command line prints.

    Attributes:
        reproduction: The data set. None: none was named.
        arranged: The arranged data set. None: no download was given.
        command: The command line that runs the comparison; "" where it was run.
        comparison: The comparison. None where it was not run.
        results: Measured results beside the published ones as Markdown, also in `beside.md` (and
            `beside.csv`) of the comparison; "" where there are none.
    """

    reproduction: Reproduction | None = None
    arranged: Arranged | None = None
    command: str = ""
    comparison: Comparison | None = None
    results: str = ""

    def __repr__(self) -> str:
        if self.reproduction is None:
            return "Reproduced(no data set)"
        state = "described"
        if self.arranged is not None:
            state = f"arranged in {str(self.arranged.folder)!r}"
        if self.results:
            state += ", with results"
        return f"Reproduced({self.reproduction.name}: {state})"

    def __str__(self) -> str:
        """The list of data sets, the description of one, or what was arranged and measured."""
        if self.reproduction is None:
            return listing()
        if self.arranged is None:
            return describe_reproduction(self.reproduction)
        parts = [arranged_text(self.arranged, self.reproduction)]
        if self.comparison is not None:
            files = [
                f"every case  {self.comparison.table}",
                f"report      {self.comparison.report}",
            ]
            parts.append("\n".join(files))
        if self.command:
            parts.append(self.command)
        if self.results:
            parts.append(self.results)
        return "\n\n".join(parts)


def reproduce(
    name: str = "",
    download: str | Path | None = None,
    output: str | Path | None = None,
    *,
    run: bool = False,
    rows: str = "",
    masks: Mapping[str, str | Path] | None = None,
    scale: float = 1.0,
    partial: bool = False,
    convention: str = CONVENTION,
    settings: Sequence[str] = (),
    progress_bar: ProgressBar = no_progress_bar,
) -> Reproduced:
    """Reproduce the tables of the CoLab paper on one of its data sets.

    The same call resumes what was stopped.

    Args:
        name: Which data set, one of `REPRODUCTIONS`. "" lists them.
        download: Folder of the download. None describes how to get it.
        output: Folder for everything that is made.
        run: Run the comparison; else its command line is given.
        rows: Rows with commas between, such as "none,CoLab-2", or with settings of their own (see
            `rows.select_rows`). "" for those of the paper.
        masks: Folders of masks that serve as context labels, a row for each name.
        scale: Share of the paper's training steps, for a trial.
        partial: Take the cases that are there and whole, and leave the others out.
        convention: Whose definitions of the metrics; the default is the paper's.
        settings: `name=value` words for every run, after the paper's.
        progress_bar: Shows the progress of each stage.

    Returns:
        What was arranged, and the results beside the published ones where there are some.

    Raises:
        ContextsegError: The data set or a row does not exist, the download is not whole, or a run
            failed.
    """
    if not name:
        return Reproduced()
    reproduction = find_reproduction(name)
    if download is None:
        return Reproduced(reproduction)
    if output is None:
        raise ContextsegError("--output", "no folder to work in", "say where, as in -o OUT")
    out = Path(output).absolute()
    compared = out / COMPARED
    folders = {"anatomy": out / ANATOMY} if reproduction.organ else {}
    folders |= _mask_folders(masks or {})
    available = method_rows(reproduction, folders)
    chosen = select_rows(available, rows)
    check_scoring(convention, (), ())
    paper = paper_settings(reproduction)
    words = (*paper_settings(reproduction, scale), *settings)
    with progress_bar("read") as progress:
        arranged = arrange(reproduction, download, out, partial=partial, progress=progress)
    command = ""
    comparison = None
    if run:
        roi = roi_words(reproduction)
        grid = parse_grid(arranged.folder, compared, chosen.methods, SEEDS, settings=words, roi=roi)
        published = reproduction.train, reproduction.test
        counts = (len(arranged.train), len(arranged.test)), published
        note = trial_note(departures(grid, available, paper, SEEDS, counts))
        comparison = compare(
            replace(grid, note=note),
            convention=convention,
            largest_component=chosen.largest,
            progress_bar=progress_bar,
        )
    else:
        command = command_line(reproduction, arranged.folder, compared, chosen, words, convention)
    results = _write_results(reproduction, compared, convention, available, paper)
    return Reproduced(reproduction, arranged, command, comparison, results)


def _mask_folders(masks: Mapping[str, str | Path]) -> dict[str, Path]:
    """The folders of masks by row. Raises `ContextsegError` for one that does not exist."""
    for folder in masks.values():
        if not Path(folder).is_dir():
            raise ContextsegError(folder, "there is no such folder of masks", "check the path")
    return {name: Path(folder).absolute() for name, folder in masks.items()}


def _write_results(
    reproduction: Reproduction,
    compared: Path,
    convention: str,
    available: Mapping[str, str],
    paper: Sequence[str],
) -> str:
    """Write the results beside the published ones, and return them; "" without results."""
    folder = results_folder(compared, convention)
    if not (folder / "table.csv").exists():
        folder = compared  # of another call, by this library's definitions, as its title says
    if not (folder / "table.csv").exists():
        return ""

    cases = read_table_file(folder / "table.csv", ("case", "class", "method", "convention"))
    trial = kept_departures(compared, available, paper, SEEDS)
    results = beside_published(reproduction, cases, trial)
    write_text(folder / f"{BESIDE}.md", results + "\n")
    write_text(folder / f"{BESIDE}.csv", beside_csv(reproduction, cases, trial))
    return results
