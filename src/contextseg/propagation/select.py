"""Which slices to evaluate, and which of them to use as the reference slices of propagation.

Positions are along the first axis of the arrays. Of equally good slices the first is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from contextseg.errors import ContextsegError, did_you_mean


def uniform_slices(slices: int, every: int = 5, most: int = 0) -> list[int]:
    """Every `every`th slice or closer, evenly spread, the first and the last among them.

    What is `every` slices thick is in one of them. Pham et al. (FLARE22) say "a small number of
    slices, uniformly sampled"; their code takes `linspace(0, n - 1, n // every)`, at most 64, which
    is 0 and 13 of 14 slices. If there are fewer slices than `every`, all are taken.

    Args:
        slices: Number of slices.
        every: Largest distance between the slices taken.
        most: How many are taken at most, at a larger distance then; 0 for no limit, else 2 or more.

    Returns:
        Slice numbers, sorted. Read from the other end they are the same.

    Example:
        >>> uniform_slices(23), uniform_slices(3), uniform_slices(7)
        ([0, 4, 9, 13, 18, 22], [0, 1, 2], [0, 3, 6])
        >>> uniform_slices(1000, most=3)
        [0, 500, 999]
    """
    if slices < every:
        return list(range(slices))
    count = max(2, -(-(slices - 1) // every) + 1)
    places = np.linspace(0, slices - 1, min(count, slices, most or count))
    middle = (slices - 1) / 2
    nearest = np.where(places < middle, np.ceil(places - 0.5), np.floor(places + 0.5))
    return nearest.astype(int).tolist()


def largest(label: np.ndarray, probability: np.ndarray | None = None) -> list[int]:
    """For each class, the slice where it is largest (Pham et al., FLARE22).

    Args:
        label: (n, H, W) integers. Background and `IGNORE` are no classes.
        probability: Not used.

    Returns:
        Positions of the slices of all classes together, sorted. [] without any class.

    Example:
        >>> largest(np.array([[[1, 1, 2]], [[1, 0, 0]], [[0, 2, 2]]]))
        [0, 2]
    """
    return sorted({int(area.argmax()) for area in _areas(label).values()})


def certain(
    label: np.ndarray, probability: np.ndarray | None = None, share: float = 0.5
) -> list[int]:
    """For each class, the slice where it is most certain.

    A class is as certain as its mean probability over the class's pixels.

    Args:
        label: (n, H, W) integers. Background and `IGNORE` are no classes.
        probability: (n, H, W), the probability of `label`.
        share: Only slices count where the class has this share of its largest area. It keeps a
            class's faint ends out.

    Returns:
        Positions of the slices of all classes together, sorted. [] without any class.

    Raises:
        ValueError: Without probabilities.
    """
    if probability is None:
        raise ValueError("choosing the most certain slices needs probabilities")
    chosen = set()
    for k, area in _areas(label).items():
        mean = np.where(label == k, probability, 0).sum((1, 2), dtype=float) / np.maximum(area, 1)
        chosen.add(int(np.where(area >= share * area.max(), mean, -1).argmax()))
    return sorted(chosen)


def covering(label: np.ndarray, probability: np.ndarray | None = None) -> list[int]:
    """Few slices that hold every class.

    Greedy: the slice that adds most classes is taken until no class is missing. Of slices that add
    equally many, it is the one where these are largest, each as a share of its own largest area.

    Args:
        label: (n, H, W) integers. Background and `IGNORE` are no classes.
        probability: Not used.

    Returns:
        Positions, sorted. [] without any class.

    Example:
        >>> covering(np.array([[[1, 1, 0]], [[1, 2, 3]], [[2, 2, 2]]]))
        [1]
    """
    areas = _areas(label)
    chosen = []
    while areas:
        stacked = np.stack(list(areas.values()))
        added = (stacked > 0).sum(0)
        shares = (stacked / stacked.max(1, keepdims=True)).sum(0)
        score = [tuple(s) for s in zip(added, shares)]
        best = score.index(max(score))
        chosen.append(best)
        areas = {k: area for k, area in areas.items() if not area[best]}
    return sorted(chosen)


def everything(label: np.ndarray, probability: np.ndarray | None = None) -> list[int]:
    """Every slice, those without a class too: they are known to be empty.

    Args:
        label: (n, H, W) integers.
        probability: Not used.

    Returns:
        All positions. [] if no slice holds a class.

    Example:
        >>> everything(np.array([[[0, 0]], [[0, 1]]]))
        [0, 1]
    """
    return list(range(len(label))) if (label > 0).any() else []


SELECTION_RULES: dict[str, Callable[..., list[int]]] = {
    "largest": largest,
    "certain": certain,
    "covering": covering,
    "all": everything,
}
"""By name; each takes the label (n, H, W) and its probability, and gives positions in n, sorted."""


def select_slices(
    rule: str,
    label: np.ndarray,
    probability: np.ndarray | None = None,
    slices: Sequence[int] | None = None,
    each: int = 1,
) -> list[int]:
    """The reference slices by a rule.

    By each rule, every class of the label is in one of the slices at least.

    Args:
        rule: One of `SELECTION_RULES`.
        label: (n, H, W) integers.
        probability: (n, H, W), the probability of `label`; only "certain" needs it.
        slices: Numbers, in the volume, of the n slices. None: 0 to n - 1.
        each: Reference slices of each class (ours; the paper's is 1). The slices that hold a class
            are cut into so many runs, as equally long as can be, and the rule is applied in each.

    Returns:
        Slice numbers, sorted. [] if the label holds no class: there is nothing to propagate.

    Raises:
        ContextsegError: For an unknown rule, and for less than one slice.

    Example:
        >>> label = np.array([[[0, 0]], [[0, 1]], [[1, 1]]])
        >>> select_slices("largest", label, slices=[0, 7, 14])
        [14]
        >>> select_slices("largest", label, slices=[0, 7, 14], each=2)
        [7, 14]
    """
    if rule not in SELECTION_RULES:
        raise ContextsegError(
            f"select={rule}", "there is no such rule", did_you_mean(rule, SELECTION_RULES)
        )
    if each < 1:
        raise ContextsegError(
            f"slices={each}", "a class has one reference slice or more", "give 1 or more"
        )
    choose = SELECTION_RULES[rule]
    positions = sorted({i for part in _runs(label, each) for i in choose(part, probability)})
    return positions if slices is None else [slices[i] for i in positions]


def _areas(label: np.ndarray) -> dict[int, np.ndarray]:
    """(n,): pixels of each class in each slice."""
    return {int(k): (label == k).sum((1, 2)) for k in np.unique(label) if k > 0}


def _runs(label: np.ndarray, each: int) -> Iterator[np.ndarray]:
    """The label `each` times: the nth holds each class in the nth run of its slices alone."""
    runs = {k: np.array_split(np.flatnonzero(area), each) for k, area in _areas(label).items()}
    for n in range(each):
        part = np.zeros_like(label)
        for k, run in runs.items():
            part[run[n]] += np.where(label[run[n]] == k, label.dtype.type(k), label.dtype.type(0))
        yield part
