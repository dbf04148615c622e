"""Some of a data set's classes as the region of interest, and the others as the background that they are to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from contextseg.data.layouts import Case, Dataset
from contextseg.disk import Problem, did_you_mean


def restricted(dataset: Dataset, roi: Sequence[str]) -> Dataset:
    """The same data set with the background and the classes `roi`, in its own order; without names, itself.

    A name of a region stands for the classes that it unites. Values of the other classes are background (`others`),
    also where they were painted over the ROI. Regions of `roi` alone stay, and a class that is in none becomes one.

    A case in which a class of `roi` was not looked for stays without it; where none of them was, the case is unlabelled
    from here on, whatever its label file holds, so that folds and budgets count labels of the ROI.

    Raises `Problem` for an unknown name, with the nearest known ones.
    """
    if not roi:
        return dataset
    kept = [0, *sorted({k for name in roi for k in _classes(dataset, name)})]
    regions = {
        name: tuple(kept.index(k) for k in union) for name, union in dataset.regions.items() if set(union) <= set(kept)
    }
    covered = {k for union in regions.values() for k in union}
    classes = tuple(dataset.classes[k] for k in kept)
    return replace(
        dataset,
        classes=classes,
        values=tuple(dataset.values[k] for k in kept),
        regions=regions | {name: (k,) for k, name in enumerate(classes) if k and k not in covered},
        others=(*dataset.others, *(v for k, v in enumerate(dataset.values) if k not in kept)),
        train=tuple(_looked_at(case, classes) for case in dataset.train),
        test=tuple(_looked_at(case, classes) for case in dataset.test),
    )


def _classes(dataset: Dataset, name: str) -> tuple[int, ...]:
    """The indices of the class of that name, or of those of the region."""
    if name in dataset.classes[1:]:
        return (dataset.classes.index(name),)
    if name not in dataset.regions:
        known = dict.fromkeys([*dataset.classes[1:], *dataset.regions])
        raise Problem(f"roi={name}", f"{dataset.name} has no class of this name", did_you_mean(name, known))
    return dataset.regions[name]


def _looked_at(case: Case, classes: Sequence[str]) -> Case:
    """The case with those of its statements that concern these classes."""
    if case.annotated is None:
        return case
    annotated = tuple(name for name in case.annotated if name in classes[1:])
    return replace(case, annotated=annotated) if annotated else replace(case, label=None, annotated=None)
