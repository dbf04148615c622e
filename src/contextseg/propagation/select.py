"""Which slices to look at, and which of them to label: the reference slices that propagation starts from.

Positions are along the first axis of what is given. Of equally good slices the first is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from contextseg.disk import Problem, did_you_mean


def uniform(slices: int, every: int = 5, most: int = 64) -> list[int]:
    """About every `every`th of so many slices, the first and the last among them, `most` at most.

    As Pham et al. (FLARE22): `linspace(0, n - 1, n // every)`, cut to integers. Where that gives one slice, ours are
    two; fewer slices than `every` are all taken.

    >>> uniform(23), uniform(3), uniform(7)
    ([0, 7, 14, 22], [0, 1, 2], [0, 6])
    """
    if slices < every:
        return list(range(slices))
    return np.linspace(0, slices - 1, min(most, max(2, slices // every))).astype(int).tolist()


def largest(label: np.ndarray, probability: np.ndarray | None = None) -> list[int]:
    """For each class in the label (n, H, W), the slice where it is largest; their union, sorted (Pham et al., FLARE22).

    Background and `IGNORE` are no classes. [] where there is none. `probability` is not read.

    >>> largest(np.array([[[1, 1, 2]], [[1, 0, 0]], [[0, 2, 2]]]))
    [0, 2]
    """
    return sorted({int(area.argmax()) for area in _areas(label).values()})


def certain(label: np.ndarray, probability: np.ndarray | None = None, share: float = 0.5) -> list[int]:
    """For each class, the slice where it is most certain, among those where it has `share` of its largest area.

    `probability` (n, H, W) is that of the label given; a class is as certain as its mean over the class's pixels. The
    condition on the area keeps a class's faint ends out. Raises ValueError without probabilities.
    """
    if probability is None:
        raise ValueError("choosing the most certain slices needs probabilities")
    found = set()
    for k, area in _areas(label).items():
        mean = np.where(label == k, probability, 0).sum((1, 2), dtype=float) / np.maximum(area, 1)
        found.add(int(np.where(area >= share * area.max(), mean, -1).argmax()))
    return sorted(found)


def covering(label: np.ndarray, probability: np.ndarray | None = None) -> list[int]:
    """Few slices that hold every class: again and again the one that adds most classes, until none is missing.

    Of slices that add equally many, the one where these are largest, each as a share of its own largest area.
    `probability` is not read.

    >>> covering(np.array([[[1, 1, 0]], [[1, 2, 3]], [[2, 2, 2]]]))
    [1]
    """
    areas, found = _areas(label), []
    while areas:
        there = np.stack(list(areas.values()))
        score = [tuple(s) for s in zip((there > 0).sum(0), (there / there.max(1, keepdims=True)).sum(0))]
        best = score.index(max(score))
        found.append(best)
        areas = {k: area for k, area in areas.items() if not area[best]}
    return sorted(found)


def everything(label: np.ndarray, probability: np.ndarray | None = None) -> list[int]:
    """Every slice, those without a class too: they are known to be empty. [] where no slice holds one.

    >>> everything(np.array([[[0, 0]], [[0, 1]]]))
    [0, 1]
    """
    return list(range(len(label))) if (label > 0).any() else []


RULES: dict[str, Callable[..., list[int]]] = {
    "largest": largest,
    "certain": certain,
    "covering": covering,
    "all": everything,
}
"""By name; each takes the label (n, H, W) and its probability, and gives positions in n, sorted."""


def select(
    rule: str,
    label: np.ndarray,
    probability: np.ndarray | None = None,
    slices: Sequence[int] | None = None,
    each: int = 1,
) -> list[int]:
    """The reference slices by one of `RULES`, as numbers of the volume, where `slices` says which n these are.

    each  for how many slices of a class the rule is asked (ours; the paper's is 1): the slices that hold the class are
          cut into so many runs, as equally long as can be, and the rule is asked in each.

    By each rule, every class of the label is in one of the slices at least. [] where the label holds no class: there is
    nothing to propagate. Raises `Problem` for an unknown rule, and for less than one slice.

    >>> label = np.array([[[0, 0]], [[0, 1]], [[1, 1]]])
    >>> select("largest", label, slices=[0, 7, 14]), select("largest", label, slices=[0, 7, 14], each=2)
    ([14], [7, 14])
    """
    if rule not in RULES:
        raise Problem(f"select={rule}", "there is no such rule", did_you_mean(rule, RULES))
    if each < 1:
        raise Problem(f"slices={each}", "a class has one reference slice or more", "give 1 or more")
    found = sorted({i for part in _runs(label, each) for i in RULES[rule](part, probability)})
    return found if slices is None else [slices[i] for i in found]


def _areas(label: np.ndarray) -> dict[int, np.ndarray]:
    """(n,): pixels of each class in each slice."""
    return {int(k): (label == k).sum((1, 2)) for k in np.unique(label) if k > 0}


def _runs(label: np.ndarray, each: int) -> Iterator[np.ndarray]:
    """The label `each` times: in the first each class is in the first run of its slices alone, and so on."""
    runs = {k: np.array_split(np.flatnonzero(area), each) for k, area in _areas(label).items()}
    for n in range(each):
        part = np.zeros_like(label)
        for k, run in runs.items():
            part[run[n]] += np.where(label[run[n]] == k, label.dtype.type(k), label.dtype.type(0))
        yield part
