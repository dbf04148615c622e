"""Which slices are chosen, and how shapes alone fill those between them."""

from __future__ import annotations

import numpy as np
import pytest

from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.propagation.outlines import Outlines
from contextseg.propagation.select import (
    SELECTION_RULES,
    certain,
    covering,
    largest,
    select_slices,
    uniform_slices,
)
from contextseg.propagation.shapes import copy_nearest, interpolate_shapes


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        (0, []),
        (1, [0]),
        (4, [0, 1, 2, 3]),
        (5, [0, 4]),
        (6, [0, 5]),
        (9, [0, 4, 8]),
        (14, [0, 4, 9, 13]),
        (23, [0, 4, 9, 13, 18, 22]),
    ],
)
def test_uniform_sampling(slices: int, expected: list[int]) -> None:
    assert uniform_slices(slices) == expected


@pytest.mark.parametrize("every", [1, 2, 5, 7])
def test_every_nth_slice_means_it_at_any_number_of_slices(every: int) -> None:
    for slices in range(every, 200):
        chosen = uniform_slices(slices, every)
        assert (chosen[0], chosen[-1]) == (0, slices - 1)
        assert max(np.diff(chosen), default=0) <= every
        assert len(chosen) <= (slices - 1) // every + 2
        if len(chosen) % 2 == 0 or slices % 2:  # else two slices are in the middle
            assert chosen == [slices - 1 - i for i in reversed(chosen)]


@pytest.mark.parametrize("slices", [321, 5000])
def test_a_limit_of_slices_is_kept_to(slices: int) -> None:
    chosen = uniform_slices(slices, most=64)
    assert (chosen[0], chosen[-1]) == (0, slices - 1)
    assert len(set(chosen)) == len(chosen) == 64
    assert uniform_slices(100, most=64) == uniform_slices(100)


def volume() -> np.ndarray:
    """Six slices: class 1 in 0 to 3, largest in 1; class 2 in 3 and 4, largest in 4; 7 in 3."""
    label = np.zeros((6, 4, 5), np.int16)
    for i, pixels in enumerate((3, 9, 5, 2)):
        label[i].flat[:pixels] = 1
    label[3, 2:, :2] = 2
    label[4, 1:] = 2
    label[3, 3, 4] = 7
    label[5] = IGNORE
    return label


def test_the_largest_slice_of_each_class() -> None:
    label = volume()
    assert largest(label) == [1, 3, 4]
    assert largest(np.where(label == 7, 0, label)) == [1, 4]
    areas = {k: [(label[i] == k).sum() for i in range(6)] for k in (1, 2, 7)}
    assert sorted(int(np.argmax(a)) for a in areas.values()) == [1, 3, 4]


def test_the_most_certain_slice_is_not_a_faint_end() -> None:
    label = volume()
    probability = np.full(label.shape, 0.5)
    probability[2][label[2] == 1] = 0.8
    probability[3][label[3] == 1] = 0.99  # two pixels of nine: too small a part of the organ
    assert certain(label, probability) == [2, 3, 4]
    assert certain(label, probability, share=0.1) == [3]
    assert certain(label, np.where(label == 1, 0.75, 0.5)) == [
        1,
        3,
        4,
    ]  # a draw goes to the first that is large enough
    with pytest.raises(ValueError, match="probabilities"):
        certain(label)


def test_few_slices_cover_every_class() -> None:
    label = volume()
    assert covering(label) == [3]
    assert covering(np.where(label == 7, 0, label)) == [3]
    label[3] = 0
    assert covering(label) == [1, 4]
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = rng.integers(0, 9, (7, 2, 2))
        chosen = covering(drawn)
        assert set(np.unique(drawn[chosen])) - {0} == set(np.unique(drawn)) - {0}
        assert len(chosen) <= len(largest(drawn))


def test_numbers_of_the_volume() -> None:
    label = volume()
    for rule in SELECTION_RULES:
        probability = np.ones(label.shape)
        chosen = SELECTION_RULES[rule](label, probability)
        assert select_slices(rule, label, probability) == chosen
        assert select_slices(rule, label, probability, slices=range(10, 70, 10)) == [
            10 + 10 * i for i in chosen
        ]
        assert select_slices(rule, np.full((3, 2, 2), IGNORE), np.ones((3, 2, 2))) == []
    with pytest.raises(ContextsegError, match="largest"):
        select_slices("large", label)


# --- shapes between slices ------------------------------------------------------------------------


def disc(radius: float, at: tuple[float, float] = (20, 20), size: int = 41) -> np.ndarray:
    i, j = np.indices((size, size))
    return (i - at[0]) ** 2 + (j - at[1]) ** 2 < radius**2


def test_a_cone_between_two_discs() -> None:
    filled = interpolate_shapes({2: disc(6), 10: disc(14)}, 13)
    assert not filled[:2].any()
    assert not filled[11:].any()
    for i in range(3, 10):
        assert filled[i].sum() == pytest.approx(np.pi * (6 + (i - 2)) ** 2, rel=0.08)
        assert (filled[i] >= filled[i - 1]).all()


def test_several_classes_keep_their_border() -> None:
    """Two classes whose common border moves from column 4 to column 8 fill the image between."""
    first, last = np.ones((6, 12)), np.ones((6, 12))
    first[:, 4:], last[:, 8:] = 5, 5
    filled = interpolate_shapes({0: first, 4: last}, 5)
    assert [int((row[3] == 1).sum()) for row in filled] == [4, 5, 6, 7, 8]
    assert set(np.unique(filled)) == {1, 5}


def test_what_one_reference_lacks_ends_half_way() -> None:
    filled = interpolate_shapes({0: disc(10) * 3, 8: np.zeros((41, 41))}, 9)
    areas = [int((row == 3).sum()) for row in filled]
    assert areas == sorted(areas, reverse=True)
    assert areas[3] > 0
    assert areas[4:] == [0] * 5


def test_pixels_that_are_not_square() -> None:
    """Every fourth row of a fine image is an image of 4 x 1 mm, and its shapes are such rows."""
    first, last = disc(5, (30, 20), 60), disc(16, (26, 34), 60)
    fine = interpolate_shapes({0: first, 4: last}, 5, aligned=False)[:, ::4]
    coarse = {0: first[::4], 4: last[::4]}
    wrong = {
        mm: (interpolate_shapes(coarse, 5, mm, aligned=False) != fine)[1:4].sum()
        for mm in ((4.0, 1.0), (1.0, 1.0))
    }
    assert wrong[4.0, 1.0] <= 0.1 * fine[1:4].sum()
    assert wrong[1.0, 1.0] > 5 * wrong[4.0, 1.0]


def test_what_is_labelled_comes_back_and_the_rest_of_a_reference_is_filled() -> None:
    label = (disc(9) * 2).astype(int)
    label[:, :20] = IGNORE
    whole = disc(9) * 2
    for ends in (False, True):
        filled = interpolate_shapes({1: label, 3: whole}, 6, ends=ends)
        assert all((row == whole).all() for row in filled[1:4])
        assert (filled[5] == (whole if ends else 0)).all()
    np.testing.assert_array_equal(copy_nearest({1: label, 3: whole}, 6), [whole] * 6)
    alone = interpolate_shapes({1: label, 3: label}, 5)  # nobody has said more
    np.testing.assert_array_equal(alone[2], np.where(label == IGNORE, 0, label))


def test_a_few_labelled_pixels_of_a_slice_stay_and_change_no_other() -> None:
    whole = disc(9).astype(int)
    scribble = np.full((41, 41), IGNORE)
    scribble[20, 18:20], scribble[20, 35:37] = 0, 1
    filled = interpolate_shapes({0: whole, 4: scribble, 8: whole}, 9)
    expected = np.where(scribble == IGNORE, whole, scribble)
    np.testing.assert_array_equal(filled[4], expected)
    assert all((filled[i] == whole).all() for i in (1, 3, 5, 7))


def test_a_part_that_moves_keeps_its_shape() -> None:
    """Far apart, the plain rule leaves nothing half way."""
    first, last = disc(6, (10, 10)), disc(6, (30, 26))
    filled = interpolate_shapes({0: first, 4: last}, 5)
    np.testing.assert_array_equal(filled[2], disc(6, (20, 18)))
    assert not interpolate_shapes({0: first, 4: last}, 5, aligned=False)[2].any()
    both = interpolate_shapes({0: first | last, 4: disc(6, (12, 12)) | disc(6, (28, 24))}, 5)
    np.testing.assert_array_equal(both[2], disc(6, (11, 11)) | disc(6, (29, 25)))


def test_three_slices_of_a_ball_give_the_ball() -> None:
    radii = [max(0.0, 14**2 - (i - 14) ** 2) ** 0.5 for i in range(29)]
    ball = np.stack([disc(r) for r in radii])
    kept = [1, 14, 27]
    ours, plain = (
        interpolate_shapes({i: ball[i] for i in kept}, 29, aligned=aligned) > 0
        for aligned in (True, False)
    )
    dice = [2 * (x & ball).sum() / (x.sum() + ball.sum()) for x in (ours, plain)]
    assert dice[0] > 0.95
    assert dice[1] < 0.85


def test_what_both_slices_hold_stays_foreground() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, last = (
            sum(disc(rng.uniform(3, 9), tuple(rng.uniform(8, 32, 2))) for _ in range(3)) > 0
            for _ in range(2)
        )
        border = rng.integers(5, 35, 2)
        labels = {
            i: np.where(mask, np.where(np.arange(41) < at, 1, 2), 0)
            for i, mask, at in ((0, first, border[0]), (5, last, border[1]))
        }
        assert (interpolate_shapes(labels, 6)[:, first & last] > 0).all()


def test_each_class_is_filled_between_the_slices_that_say_something_of_it() -> None:
    one, two = disc(5, (10, 10)) * 1, disc(5, (30, 30)) * 2
    labels = {0: one, 2: two, 6: two, 8: one}
    silent = {0: {2}, 2: {1}, 6: {1}, 8: {2}}
    expected = np.stack([one] * 9)
    expected[2:7] += two
    np.testing.assert_array_equal(interpolate_shapes(labels, 9, silent=silent), expected)
    copied = copy_nearest(labels, 9, silent)
    np.testing.assert_array_equal(copied, np.stack([one + two] * 9))
    assert not (interpolate_shapes(labels, 9)[2:7] == 1).any()


def test_a_reversed_volume_gives_the_same_reversed() -> None:
    rng = np.random.default_rng(3)
    labels = {i: disc(rng.uniform(4, 9), tuple(rng.uniform(12, 28, 2))) * 1 for i in (0, 4, 9, 13)}
    straight = interpolate_shapes(labels, 14)
    turned = interpolate_shapes({13 - i: x for i, x in labels.items()}, 14)[::-1]
    assert (straight != turned).sum() <= 0.01 * straight.sum()  # ties


def test_expected_dice_falls_with_distance_and_rises_with_likeness() -> None:
    def dice(slices: dict[int, np.ndarray], i: int, slice_mm: float = 1.0) -> float:
        return Outlines(slices, (1.0, 1.0)).expected_dice(i, slice_mm)

    same = {0: disc(8), 10: disc(8)}
    assert dice(same, 1) > dice(same, 3) > dice(same, 5) > 0
    assert dice(same, 5) > dice(same, 5, 3.0)
    assert dice(same, 5) > dice({0: disc(8), 10: disc(8, (12, 12))}, 5)
    assert dice({**same, 20: disc(8)}, 5) > dice(same, 5)
    assert np.isnan(dice(same, 11))
    assert dice({0: disc(8), 10: np.zeros((41, 41), bool)}, 8) == 0


def test_full_and_equal_slices() -> None:
    full = np.full((4, 4), 3)
    assert (interpolate_shapes({0: full, 3: full}, 4) == 3).all()
    same = disc(8).astype(int)
    assert all((row == same).all() for row in interpolate_shapes({0: same, 5: same}, 6))


def test_the_nearest_slice() -> None:
    labels = {1: np.full((2, 2), 4), 5: np.full((2, 2), 9)}
    assert copy_nearest(labels, 8)[:, 0, 0].tolist() == [4, 4, 4, 4, 9, 9, 9, 9]


@pytest.mark.parametrize("fill", [interpolate_shapes, copy_nearest])
@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({}, "at least one"),
        ({7: np.ones((2, 2))}, "0 to 4"),
        ({-1: np.ones((2, 2))}, "0 to 4"),
        ({0: np.ones((2, 2)), 1: np.ones((2, 3))}, "each pixel"),
        ({0: np.ones(4)}, "each pixel"),
    ],
)
def test_references_that_do_not_fit(fill, references, message) -> None:
    with pytest.raises(ContextsegError, match=message):
        fill(references, 5)
