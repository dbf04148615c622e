"""The studies, each as one function of the Python face: what asks questions of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.arguments import Methods, StrPath, assignments, progress_of, seconds_of, words
from contextseg.disk import lock_folder, readable
from contextseg.errors import ContextsegError

if TYPE_CHECKING:
    import pandas as pd

    from contextseg.studies.cmunet import CMUNetTable
    from contextseg.studies.compare import Comparison, Forecast, Grid
    from contextseg.studies.curve import Curve
    from contextseg.studies.diagnose import Diagnosis
    from contextseg.studies.flare22 import FLARE22Result
    from contextseg.studies.reproduce import Reproduced


@readable
def compare(
    dataset: StrPath,
    output: StrPath,
    methods: Methods,
    *,
    seeds: Sequence[int] | str = (0, 1, 2),
    budgets: Sequence[int | str] | str = (),
    folds: Sequence[int | str] | str = (),
    roi: Sequence[str] = (),
    time: str | float = "",
    jobs: int = 1,
    cluster: str = "",
    cluster_set: Mapping[str, Any] | None = None,
    other: Mapping[str, StrPath] | None = None,
    test: bool = True,
    metrics: Sequence[str] | str = ("dsc", "nsd", "hd95_mm"),
    convention: str = "default",
    largest_component: Sequence[str] = (),
    verbose: bool = True,
    **settings: Any,
) -> Comparison:
    """Train, predict and score a grid of runs, and test the differences.

    The same call goes on where it was stopped.

    Args:
        dataset: Folder of the data set.
        output: Folder of the comparison.
        methods: What to compare: {"plain": "supervised", "wide": "supervised:base_width=64"}.
        seeds: Seeds, each a run.
        budgets: Numbers of labelled patients to learn from, nested, such as (5, 10, "all").
        folds: Folds to validate on, such as (0, 1). () as for `run`.
        roi: Classes to segment; the others are background. () for all.
        time: Time for all runs together, such as "12h", or seconds: each run gets an equal share,
            and measures its number of steps. "" leaves the length of each to its settings.
        jobs: Runs at a time.
        cluster: "slurm" or "local": run by submitit.
        cluster_set: Parameters of submitit.
        other: Predictions of other tools, or their `summary.json`, as rows by name.
        test: Score the test split, once for each run, logged. False while choosing.
        metrics: What is shown and tested.
        convention: Whose definitions of the metrics, such as "colab"; docs/measuring.md lists them.
            Results of another than the default go into the folder `by-NAME`. Nothing is trained or
            predicted again.
        largest_component: Names of methods whose predictions get a further row, NAME-largest, with
            the largest connected part alone.
        verbose: Show the progress on stderr.
        **settings: Settings of every run, by name.

    Returns:
        The tables and the report.

    Raises:
        ContextsegError: The data set has errors or a leak, runs failed, or a cell would be tested
            a second time with other weights.
    """
    from contextseg.studies.compare import compare as compare_grid

    return compare_grid(
        _grid(dataset, output, methods, seeds, budgets, folds, roi, settings, time, jobs),
        jobs=jobs,
        cluster=cluster or None,
        options=cluster_set,
        others=other,
        test=test,
        metrics=words(metrics),
        convention=convention,
        largest_component=tuple(largest_component),
        progress_bar=progress_of(verbose),
    )


@readable
def forecast(
    dataset: StrPath,
    output: StrPath,
    methods: Methods,
    *,
    seeds: Sequence[int] | str = (0, 1, 2),
    budgets: Sequence[int | str] | str = (),
    folds: Sequence[int | str] | str = (),
    roi: Sequence[str] = (),
    time: str | float = "",
    test: bool = True,
    verbose: bool = True,
    **settings: Any,
) -> Forecast:
    """What `compare` would do, and about how long it would take; nothing is written.

    Args:
        dataset: Folder of the data set.
        output: Folder of the comparison.
        methods: As for `compare`.
        seeds: As for `compare`.
        budgets: As for `compare`.
        folds: As for `compare`.
        roi: As for `compare`.
        time: As for `compare`.
        test: As for `compare`.
        verbose: Show the progress on stderr.
        **settings: Settings of every run, by name.

    Returns:
        Each run with its state and the seconds of training that are left.
    """
    from contextseg.studies.compare import forecast as forecast_grid

    grid = _grid(dataset, output, methods, seeds, budgets, folds, roi, settings, time, 1)
    return forecast_grid(grid, test=test, progress_bar=progress_of(verbose))


@readable
def curve(
    dataset: StrPath,
    output: StrPath,
    methods: Methods,
    *,
    budgets: Sequence[int | str] | str = (2, 5, 10, "all"),
    seeds: Sequence[int] | str = (0, 1, 2),
    folds: Sequence[int | str] | str = (),
    goal: Sequence[float] = (0.7, 0.8, 0.9),
    roi: Sequence[str] = (),
    time: str | float = "",
    jobs: int = 1,
    cluster: str = "",
    cluster_set: Mapping[str, Any] | None = None,
    test: bool = True,
    verbose: bool = True,
    **settings: Any,
) -> Curve:
    """Label efficiency: Dice and NSD against the number of labelled patients.

    Args:
        dataset: Folder of the data set.
        output: Folder of the comparison.
        methods: As for `compare`.
        budgets: Numbers of labelled patients; the other scans count as unlabelled.
        seeds: As for `compare`.
        folds: As for `compare`.
        goal: Dice scores: how many labelled patients reach each?
        roi: As for `compare`.
        time: As for `compare`.
        jobs: As for `compare`.
        cluster: As for `compare`.
        cluster_set: As for `compare`.
        test: As for `compare`.
        verbose: Show the progress on stderr.
        **settings: Settings of every run, by name.

    Returns:
        The comparison with a curve for each split.
    """
    from contextseg.studies.curve import curve as curve_grid

    return curve_grid(
        _grid(dataset, output, methods, seeds, budgets, folds, roi, settings, time, jobs),
        goal,
        jobs=jobs,
        cluster=cluster or None,
        options=cluster_set,
        test=test,
        progress_bar=progress_of(verbose),
    )


@readable
def simulate(
    dataset: StrPath,
    output: StrPath,
    *,
    model: StrPath | None = None,
    classes: Sequence[str] = (),
    ways: Sequence[str] | str = (),
    start: Sequence[str] | str = ("uniform",),
    slices: int = 3,
    rounds: int = 8,
    rules: Sequence[str] | str = ("worst", "advice"),
    plane: str = "axial",
    cases: int | None = None,
    tolerance_mm: float = 2.0,
    goal: float = 0.9,
    steps: int = 300,
    seed: int = 0,
    chain: bool = False,
    arms: Sequence[str] | str = (),
    budgets: Sequence[float] | str = (0.05, 0.1, 0.15),
    seeds: Sequence[int] | str = (0, 1, 2),
    method: str = "cps",
    minutes_per_slice: float = 1.0,
    verbose: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Simulate a person who labels slices, has the rest filled, corrects one more, and so on.

    With `chain`, it is the whole chain: which cases, which slices, fill, train, predict, and again
    on the worst, until a budget is spent; the Dice of locked test cases against the slices spent.

    Args:
        dataset: A labelled data set.
        output: Folder for `annotator.csv`, `summary.md` and the curves.
        model: A run of `train(..., method="stcn")`. None: the baselines alone.
        classes: Classes, each a structure by itself. () for all.
        ways: Of "propagation", "combined", "interpolation", "nearest", "network". () for all but
            the last, slow one.
        start: How the first slices are chosen: "uniform", "largest", "suggest".
        slices: Labelled slices at the start.
        rounds: Slices that are corrected after it, one in each round.
        rules: Which slice is next: "worst" or "errors", which see the truth, or "advice".
        plane: "axial", "coronal" or "sagittal".
        cases: At most so many test cases, in their order. None for all.
        tolerance_mm: Tolerance of the NSD in mm.
        goal: A Dice: how many slices reach it?
        steps: Steps of training in each round, for the way "network" and the chain.
        seed: Seed of the way "network"; the others draw nothing.
        chain: Simulate the whole chain. `slices` are then those labelled in one case before the
            next, and ways, start, rounds, rules, goal and seed have no use.
        arms: Of the chain: "all", "whole-cases", "chain", "chain-random", "chain-size",
            "chain-no-fill", "chain-unlabelled". () for all.
        budgets: Of the chain: slices to spend, as shares of all that hold a structure, ascending.
        seeds: Of the chain: each a repetition.
        method: Of the chain: how "chain-unlabelled" trains, "cps" or "pseudo". The others are
            "supervised".
        minutes_per_slice: Of the chain: what a labelled slice costs.
        verbose: Show the progress on stderr.
        **settings: Of the chain: any setting of the training by name.

    Returns:
        A row for each case, structure, way, rule and round; of the chain for each arm, seed,
        budget, test case and class.

    Raises:
        ContextsegError: Cases failed (the message names them, and what could be done is written),
            or an argument belongs to the other kind of study.
    """
    only: dict[str, Any] = {
        "ways": words(ways),
        "rules": words(rules),
        "start": words(start),
        "goal": goal,
    }
    only |= {"rounds": rounds, "seed": seed}
    if chain:
        _refuse(only, _ALONE, "it has no use with --chain")
        from contextseg.studies.simulate import ChainStudy, study_chain

        asked = ChainStudy(
            dataset=str(Path(dataset).absolute()),
            arms=words(arms),
            budgets=tuple(float(share) for share in words(budgets)),
            seeds=tuple(int(number) for number in words(seeds)),
            classes=tuple(classes),
            slices=slices,
            plane=plane,
            method=method,
            model=str(Path(model).absolute()) if model else "",
            settings=(f"steps={steps}", *assignments(settings)),
            minutes_per_slice=minutes_per_slice,
            tolerance_mm=tolerance_mm,
            cases=cases,
        )
        with lock_folder(output):
            return study_chain(asked, Path(output), progress_of(verbose))
    of_chain: dict[str, Any] = {
        "arms": words(arms),
        "budgets": words(budgets),
        "seeds": words(seeds),
    }
    of_chain |= {"method": method, "minutes_per_slice": minutes_per_slice, **settings}
    _refuse(of_chain, _CHAIN, "it has a use with --chain alone")
    from contextseg.studies.simulate import Study, run_study

    study = Study(
        dataset=str(Path(dataset).absolute()),
        model=str(Path(model).absolute()) if model else "",
        classes=tuple(classes),
        ways=words(ways),
        starts=words(start),
        rules=words(rules),
        first=slices,
        rounds=rounds,
        plane=plane,
        tolerance_mm=tolerance_mm,
        steps=steps,
        seed=seed,
    )
    with lock_folder(output):
        return run_study(study, Path(output), cases, goal, progress_of(verbose))


_ALONE = {
    "ways": (),
    "rules": ("worst", "advice"),
    "start": ("uniform",),
    "goal": 0.9,
    "rounds": 8,
    "seed": 0,
}
"""Defaults of `simulate` that only a study of single scans reads."""

_CHAIN = {
    "arms": (),
    "budgets": ("0.05", "0.1", "0.15"),
    "seeds": ("0", "1", "2"),
    "method": "cps",
    "minutes_per_slice": 1.0,
}
"""Defaults of `simulate` that only the chain reads."""


def _refuse(given: Mapping[str, Any], defaults: Mapping[str, Any], what: str) -> None:
    """Refuse arguments of another kind of study, so that none is left out in silence."""
    for name, value in given.items():
        if name not in defaults or value != defaults[name]:
            option = f"--{name.replace('_', '-')} {value}"
            raise ContextsegError(option, what, "leave it out")


@readable
def diagnose(
    run: StrPath,
    *,
    training_cases: int = 8,
    cases: Sequence[str] | str = "",
    axes: str = "deployed",
    verbose: bool = True,
) -> Diagnosis:
    """Would context labels help? Compare validation cases of a run with its training cases.

    The page has the figures of the CoLab paper: logits, overlap, M, contexts, intensities.

    Args:
        run: Folder of a finished run.
        training_cases: How many training cases to compare with.
        cases: "validation", "test", names of labelled cases, or "train" for training cases alone.
            "" is "validation", and "train" for a run that kept none.
        axes: "deployed" for the logits that predict, or "paper" for the largest logit of a ROI
            class against the largest of all other channels.
        verbose: Show the progress on stderr.

    Returns:
        The facts, and the page that shows them.

    Raises:
        ContextsegError: The run is not finished, or there is no such case with a label.
    """
    from contextseg.studies.diagnose import diagnose as diagnose_run

    chosen = ",".join(words(cases))
    return diagnose_run(run, training_cases, progress_of(verbose), cases=chosen, axes=axes)


@readable
def reproduce(
    name: str = "",
    download: StrPath | None = None,
    output: StrPath | None = None,
    *,
    run: bool = False,
    rows: Sequence[str] | str = (),
    masks: Mapping[str, StrPath] | None = None,
    scale: float = 1.0,
    partial: bool = False,
    epochs: int = 0,
    seeds: Sequence[int] | str = (),
    trial: bool = False,
    convention: str = "colab",
    verbose: bool = True,
    **settings: Any,
) -> Reproduced | CMUNetTable | FLARE22Result:
    """From a download to the tables of the CoLab paper (six data sets), CMU-Net's and FLARE22's.

    Args:
        name: Which data set of CoLab, "cmunet", or "flare22", Table 4 of Pham et al. "" lists them.
        download: Folder of the download; for "cmunet" any labelled data set. None describes how to
            get it.
        output: Folder for everything that is made.
        run: Run the comparison; else its command is given.
        rows: Rows of the paper's table, such as ("none", "CoLab-2"); "CoLab-2-fast" is this
            library's default, and "new=CoLab-2:generator_every=5" a row with settings of its own.
            () for the paper's.
        masks: Folders of masks that serve as context labels, a row for each name.
        scale: Share of the paper's training steps, for a trial.
        partial: Take the cases that are there and whole, and leave the others out.
        epochs: Of "cmunet": epochs of every slice. 0 for the paper's 100, of a trial 2.
        seeds: Of "cmunet": seeds, each a run. () for the paper's ten, of a trial one.
        trial: Of "cmunet": a short run, to see that all works.
        convention: Whose definitions of the metrics; the default is the paper's.
        verbose: Show the progress on stderr.
        **settings: Settings of every run, by name.

    Returns:
        What was arranged, and the results beside the published ones where there are some.

    Raises:
        ContextsegError: The data set or a row does not exist, runs failed, or an option is of the
            other paper.
    """
    numbers = ",".join(words(seeds))
    if name == "cmunet":
        colabs = {"masks": masks or None, "scale": scale, "partial": partial}
        _refuse({**colabs, "convention": convention}, _OF_COLAB, _COLAB_ONLY)
        from contextseg.studies.cmunet import reproduce_cmunet

        return reproduce_cmunet(
            download,
            output,
            run=run,
            rows=",".join(words(rows)),
            epochs=epochs,
            seeds=numbers,
            trial=trial,
            settings=assignments(settings),
            progress_bar=progress_of(verbose),
        )
    given = {"epochs": epochs, "seeds": numbers, "trial": trial}
    _refuse(given, _OF_CMUNET, "it has a use with cmunet alone")
    from contextseg.studies.flare22 import FLARE22, reproduce_flare22
    from contextseg.studies.reproduce import reproduce as reproduce_paper

    if name == FLARE22:
        _refuse({"masks": masks or None, "convention": convention}, _OF_COLAB, _COLAB_ONLY)
        return reproduce_flare22(
            download,
            output,
            run=run,
            rows=words(rows),
            scale=scale,
            partial=partial,
            settings=assignments(settings),
            progress_bar=progress_of(verbose),
        )
    return reproduce_paper(
        name,
        download,
        output,
        run=run,
        rows=rows if isinstance(rows, str) else ";".join(rows),
        masks=masks,
        scale=scale,
        partial=partial,
        convention=convention,
        settings=assignments(settings),
        progress_bar=progress_of(verbose),
    )


_OF_COLAB = {"masks": None, "scale": 1.0, "partial": False, "convention": "colab"}
"""Defaults of `reproduce` that only CoLab's data sets read."""
_COLAB_ONLY = "it has a use with CoLab's data sets alone"
_OF_CMUNET = {"epochs": 0, "seeds": "", "trial": False}
"""Defaults of `reproduce` that only CMU-Net's table reads."""


def _grid(
    dataset: StrPath,
    output: StrPath,
    methods: Methods,
    seeds: Sequence[int] | str,
    budgets: Sequence[int | str] | str,
    folds: Sequence[int | str] | str,
    roi: Sequence[str],
    settings: Mapping[str, Any],
    time: str | float,
    jobs: int,
) -> Grid:
    from contextseg.studies.compare import parse_grid

    return parse_grid(
        Path(dataset).absolute(),
        Path(output),
        methods,
        ",".join(words(seeds)),
        ",".join(words(budgets)),
        ",".join(words(folds)),
        assignments(settings),
        roi,
        seconds_of(time) * jobs,
    )
