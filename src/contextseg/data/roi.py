"""Some classes of a data set as the region of interest (ROI), and the others as background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from contextseg.data.layouts import Case, Dataset
from contextseg.errors import ContextsegError, did_you_mean


def restricted(dataset: Dataset, roi: Sequence[str]) -> Dataset:
    """The data set with the background and the classes of the ROI alone.

    The values of the other classes become background (`Dataset.others`), also where they were
    painted over the ROI. Regions of ROI classes alone stay, and a class that is in none becomes
    one.

    A case in which a class of the ROI was not annotated stays without it. Where none of them was,
    the case counts as unlabelled from here on, whatever its label file holds, so that folds and
    budgets count labels of the ROI.

    Args:
        dataset: The data set.
        roi: Names of classes or regions; a region stands for the classes that it unites. () gives
            the data set itself.

    Returns:
        The data set, with its classes in their former order.

    Raises:
        ContextsegError: A name is unknown; the remedy names the nearest ones.
    """
    if not roi:
        return dataset
    kept = [0, *sorted({k for name in roi for k in _indices(dataset, name)})]
    regions = {
        name: tuple(kept.index(k) for k in union)
        for name, union in dataset.regions.items()
        if set(union) <= set(kept)
    }
    covered = {k for union in regions.values() for k in union}
    classes = tuple(dataset.classes[k] for k in kept)
    return replace(
        dataset,
        classes=classes,
        values=tuple(dataset.values[k] for k in kept),
        regions=regions | {name: (k,) for k, name in enumerate(classes) if k and k not in covered},
        others=(*dataset.others, *(v for k, v in enumerate(dataset.values) if k not in kept)),
        train=tuple(_restricted_case(case, classes) for case in dataset.train),
        test=tuple(_restricted_case(case, classes) for case in dataset.test),
        colours={name: c for name, c in dataset.colours.items() if name in classes},
        terminology={name: t for name, t in dataset.terminology.items() if name in classes},
    )


def _indices(dataset: Dataset, name: str) -> tuple[int, ...]:
    """The index of the class of that name, or those of the region's classes."""
    if name in dataset.classes[1:]:
        return (dataset.classes.index(name),)
    if name not in dataset.regions:
        known = dict.fromkeys([*dataset.classes[1:], *dataset.regions])
        what = f"{dataset.name} has no class of this name"
        raise ContextsegError(f"roi={name}", what, did_you_mean(name, known))
    return dataset.regions[name]


def _restricted_case(case: Case, classes: Sequence[str]) -> Case:
    """The case with those of its annotated classes that are among `classes`."""
    if case.annotated is None:
        return case
    annotated = tuple(name for name in case.annotated if name in classes[1:])
    if not annotated:
        return replace(case, label=None, annotated=None)
    return replace(case, annotated=annotated)


def hide_labels(cases: Sequence[Case], keep: Sequence[str] | None) -> tuple[Case, ...]:
    """The cases, some of them as if nobody had labelled them.

    Args:
        cases: Training cases.
        keep: Names of those that keep their labels; None for all.

    Returns:
        All cases, in their order.

    Raises:
        ContextsegError: A name is not that of a labelled case.
    """
    if keep is None:
        return tuple(cases)
    strange = sorted(set(keep) - {case.name for case in cases if case.label})
    if strange:
        what = f"no labelled training cases: {', '.join(strange[:5])}"
        raise ContextsegError(
            "labelled", what, "name cases that have labels and are not validated on"
        )
    return tuple(
        case if case.name in keep else replace(case, label=None, annotated=None) for case in cases
    )
