"""Batches: a function of (seed, n), and every voxel of a patch is the one it says it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import laws
from contextseg.batch import IGNORE, Batch
from contextseg.data import cache
from contextseg.data.augment import Augmentation
from contextseg.data.cache import Cached, load_record
from contextseg.data.plan import Channel, Plan
from contextseg.data.prepare import prepare
from contextseg.data.sampling import Sampler, SliceSampler
from contextseg.errors import ContextsegError
from contextseg.volume import Volume

SAR = np.eye(4)[[2, 1, 0, 3]]  # D to the head, H to the front, W to the right
STILL = Augmentation(strength=0)
CHANCES = {f.name: 0.0 for f in fields(Augmentation) if f.name.startswith("p_")}
FLIPS = Augmentation(**CHANCES)  # nothing but mirrors
GRID = (20, 24, 28)
OFFSET = 100_000


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plan(patch: tuple[int, ...] = (8, 10, 12), **changes: object) -> Plan:
    """At 1 mm, intensities as they are."""
    made = laws.plan(len(patch), batch_size=4)
    return replace(made, patch_vox=patch, channels=(Channel("x", "none"),), **changes)


def organs(grid: tuple[int, ...] = GRID) -> np.ndarray:
    """Class 1 is a cube of 27 voxels, class 2 a single one far away."""
    label = np.zeros(grid, np.int16)
    label[3:6, 3:6, 3:6] = 1
    label[-3, -3, -3] = 2
    return label


def case(
    folder: Path,
    p: Plan,
    label: np.ndarray | None,
    name: str = "a",
    annotated: tuple[bool, ...] = (True,) * 3,
) -> Cached:
    """A preprocessed case whose every voxel holds where it is: `OFFSET` and its index."""
    grid = GRID if label is None else label.shape
    image = OFFSET + np.arange(np.prod(grid), dtype=np.float32).reshape(1, *grid)
    place = folder / name
    cache._save(place, *prepare(Volume(image, SAR), replace(p, orientation="SAR"), name, label))
    found = Cached(place, load_record(place / "record.json"), annotated, label is not None)
    assert found.image.shape[1:] == grid
    return found


def index(batch: Batch, i: int) -> np.ndarray:
    """Where in its case each voxel of item `i` was, (*S) of flat indices; negative where there was
    nothing.
    """
    values = batch.image[i, 0].double().numpy()
    found = np.rint(values - OFFSET)
    assert np.abs(values - OFFSET - found)[values != 0].max() < 0.4
    return found.astype(int)


def coordinates(batch: Batch, i: int, grid: tuple[int, ...] = GRID) -> np.ndarray:
    return np.stack(np.unravel_index(index(batch, i), grid))


def is_same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(getattr(one, f.name), getattr(other, f.name))
        for f in fields(Batch)
        if f.name != "maps"
    )


def stacked(parts: list[Batch], world: int, size: int) -> Batch:
    """The batch whose shards `parts` are."""
    where = [(i % world, i // world) for i in range(size)]
    names = [f.name for f in fields(Batch) if f.name != "maps"]
    return Batch(
        **{name: torch.stack([getattr(parts[r], name)[j] for r, j in where]) for name in names}
    )


# --- a function of (seed, n) ----------------------------------------------------------------------


def test_batch_n_is_the_same_after_a_restart_and_no_other(tmp_path: Path) -> None:
    p = plan()
    cases = [case(tmp_path, p, organs(), name) for name in "abc"]
    sampler = Sampler(cases, p, seed=3)
    seen = [sampler.batch(n) for n in range(6)]
    fresh = Sampler(
        [Cached(c.folder, load_record(c.folder / "record.json"), c.annotated, True) for c in cases],
        p,
        3,
    )
    for n in (4, 0, 5, 2):  # in whatever order
        assert is_same(fresh.batch(n), seen[n])
    assert not any(is_same(seen[i], seen[j]) for i in range(6) for j in range(i))
    assert not is_same(Sampler(cases, p, seed=4).batch(0), seen[0])
    assert {int(c) for b in seen for c in b.case} == {0, 1, 2}


@pytest.mark.parametrize("unlabelled", [0, 2])
@pytest.mark.parametrize(("size", "world"), [(4, 2), (4, 3), (5, 2), (5, 3), (2, 3)])
def test_the_shards_of_all_ranks_are_the_batch_bit_for_bit(
    size: int, world: int, unlabelled: int, tmp_path: Path
) -> None:
    p = plan(batch_size=max(size, unlabelled + 1))
    cases = [
        case(tmp_path, p, organs(), "a"),
        case(tmp_path, p, organs(), "b"),
        case(tmp_path, p, None, "c"),
    ]
    sampler = Sampler(cases, p, unlabelled=unlabelled)
    for n in range(4):
        whole = sampler.batch(n)
        parts = [sampler.batch(n, rank, world) for rank in range(world)]
        for rank, part in enumerate(parts):
            assert is_same(part, whole.shard(rank, world))
        assert is_same(stacked(parts, world, p.batch_size), whole)


def test_a_rank_without_items_gets_an_empty_batch(tmp_path: Path) -> None:
    for p in (plan(batch_size=2), plan((10, 12), batch_size=2)):
        empty = Sampler([case(tmp_path, p, organs(), str(p.dims))], p).batch(0, rank=2, world=3)
        assert empty.image.shape == (0, 1, *p.patch_vox)
        assert empty.label.shape == (0, *p.patch_vox)
        assert (empty.annotated.shape, empty.case.shape, len(empty)) == ((0, 3), (0,), 0)


@pytest.mark.parametrize("patch", [(40, 40), (30, 40, 40)])
def test_what_lies_outside_the_scan_hides_no_class(patch: tuple[int, ...], tmp_path: Path) -> None:
    p, half = plan(patch), organs()
    half[:, 12:] = IGNORE
    whole = Sampler([case(tmp_path, p, organs(), "a")], p)
    partly = Sampler([case(tmp_path, p, half, "b", (True, True, True))], p)
    unlabelled = Sampler(
        [case(tmp_path, p, organs(), "c"), case(tmp_path, p, None, "d")], p, unlabelled=2
    )
    for n in range(4):
        b = whole.batch(n)
        assert (b.label == IGNORE).flatten(1).any(1).all()
        assert torch.equal(
            b.tags, torch.stack([(b.label == k).flatten(1).any(1) for k in range(3)], 1).long()
        )
        assert torch.equal(b.shard(1, 2).tags, b.tags[1::2])
        assert set(partly.batch(n).tags.flatten().tolist()) == {IGNORE, 1}
        assert (unlabelled.batch(n).tags[2:] == IGNORE).all()
    assert whole.batch(0, 4, 5).tags.shape == (0, 3)


# --- where patches lie ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patch", [(8, 10, 12), (20, 24, 28), (7, 9, 5), (10, 12), (24, 28), (9, 5)]
)
def test_strength_zero_gives_the_cached_patch_bit_for_bit(
    patch: tuple[int, ...], tmp_path: Path
) -> None:
    p = plan(patch)
    made = case(tmp_path, p, organs())
    sampler = Sampler([made], p, augmentation=STILL)
    box_of = (1,) * (3 - len(patch)) + patch
    for n in range(10):
        b = sampler.batch(n)
        assert (b.image.dtype, b.label.dtype, b.annotated.dtype, b.case.dtype) == (
            torch.float32, torch.int64, torch.bool, torch.int64,
        )  # fmt: skip
        for i in range(len(b)):
            start = [int(x) for x in np.unravel_index(index(b, i).flat[0], GRID)]
            box = tuple(slice(a, a + size) for a, size in zip(start, box_of))
            assert torch.equal(
                b.image[i], torch.from_numpy(made.patch(box, p.channels)).reshape(1, *patch)
            )
            assert torch.equal(b.label[i], torch.from_numpy(organs()[box]).long().reshape(patch))


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("patch", [(8, 10, 12), (10, 12)])
def test_every_second_item_holds_roi_and_small_organs_come_as_often(
    patch: tuple[int, ...], size: int, tmp_path: Path
) -> None:
    p = plan(patch, batch_size=size)
    cases = [
        case(tmp_path, p, organs(), "a"),
        case(tmp_path, p, np.zeros(GRID, np.int16), "no_roi"),
    ]
    sampler = Sampler(cases, p, augmentation=STILL)
    rows = []  # (on ROI, case, class 1, class 2)
    for n in range(60):
        b = sampler.batch(n)
        rows += [
            ((n * size + i) % 2, int(b.case[i]), *[bool((b.label[i] == k).any()) for k in (1, 2)])
            for i in range(size)
        ]
    centred, anywhere = ([row for row in rows if row[0] == odd] for odd in (1, 0))
    assert len(centred) == len(anywhere) == 30 * size
    assert all(row[1] == 0 and (row[2] or row[3]) for row in centred)
    assert 0.4 < np.mean([row[3] for row in centred]) < 0.6  # one voxel as often as 27
    assert {row[1] for row in anywhere} == {0, 1}
    assert np.mean([row[2] or row[3] for row in anywhere]) < 0.5


def test_a_patch_is_centred_on_its_voxel_or_pushed_inside(tmp_path: Path) -> None:
    p = plan((8, 10, 12))
    label = np.zeros(GRID, np.int16)
    label[10, 12, 14] = 1
    sampler = Sampler([case(tmp_path, p, label)], p, augmentation=STILL)
    b = sampler.batch(0)
    assert coordinates(b, 1)[:, 0, 0, 0].tolist() == [6, 7, 8]  # minus half a patch
    label[10, 12, 14], label[0, 23, 1] = 0, 1
    b = Sampler([case(tmp_path, p, label, "corner")], p, augmentation=STILL).batch(0)
    assert coordinates(b, 1)[:, 0, 0, 0].tolist() == [0, 14, 0]


@pytest.mark.parametrize("patch", [(28, 30, 12), (21, 24, 30), (30, 40)])
def test_around_a_small_case_lies_nothing_that_anybody_said(
    patch: tuple[int, ...], tmp_path: Path
) -> None:
    p = plan(patch)
    b = Sampler([case(tmp_path, p, organs())], p, augmentation=STILL).batch(0)
    assert b.image.shape[2:] == patch
    for i in range(len(b)):
        inside = index(b, i) >= 0
        assert (b.image[i, 0][torch.from_numpy(~inside)] == 0).all()
        assert (b.label[i][torch.from_numpy(~inside)] == IGNORE).all()
        assert (b.label[i].numpy()[inside] == organs().flat[index(b, i)[inside]]).all()
        for axis, (n, grid) in enumerate(zip(patch, GRID[-len(patch) :])):
            rest = tuple(a for a in range(len(patch)) if a != axis)
            there = np.flatnonzero(inside.any(rest))
            assert len(there) == min(n, grid)
            assert there[0] == max(n - grid, 0) // 2  # in the middle


def test_augmented_patches_are_whole_and_finite(tmp_path: Path) -> None:
    always = Augmentation(**dict.fromkeys(CHANCES, 1.0))
    for p in (plan(), plan((10, 12)), plan((40, 9, 9))):
        b = Sampler([case(tmp_path, p, organs(), str(p.patch_vox))], p, augmentation=always).batch(
            1
        )
        assert b.image.shape == (4, 1, *p.patch_vox)
        assert b.image.isfinite().all()
        assert set(b.label.unique().tolist()) <= {IGNORE, 0, 1, 2}
        assert (b.label >= 0).any()


# --- left and right -------------------------------------------------------------------------------


def sided() -> np.ndarray:
    """Class 1 is everything left, class 2 everything right of the middle of W, but for a gap."""
    label = np.zeros(GRID, np.int16)
    label[..., :13], label[..., 15:] = 1, 2
    return label


def test_a_mirror_from_left_to_right_swaps_the_pair_and_what_was_annotated(tmp_path: Path) -> None:
    p = plan(GRID, swaps=((1, 2),), batch_size=8)
    sampler = Sampler(
        [case(tmp_path, p, sided(), annotated=(True, True, False))], p, augmentation=FLIPS
    )
    mirrored = 0
    for n in range(4):
        b = sampler.batch(n)
        for i in range(len(b)):
            where = index(b, i)
            label = sided().flat[where]
            turned = where[0, 0, 1] < where[0, 0, 0]
            mirrored += turned
            expected = np.array([0, 2, 1])[label] if turned else label
            np.testing.assert_array_equal(b.label[i].numpy(), expected)
            assert b.annotated[i].tolist() == (
                [True, False, True] if turned else [True, True, False]
            )
    assert 8 < mirrored < 24


@pytest.mark.parametrize("swaps", [((1, 2),), ()])
def test_what_the_plan_forbids_is_never_mirrored(swaps: tuple, tmp_path: Path) -> None:
    p = plan(GRID, swaps=swaps, mirror=(True, True, False), batch_size=8)
    sampler = Sampler([case(tmp_path, p, sided())], p, augmentation=FLIPS)
    steps = []
    for n in range(5):
        b = sampler.batch(n)
        for i in range(len(b)):
            d, h, w = coordinates(b, i)
            steps.append(
                (d[1, 0, 0] - d[0, 0, 0], h[0, 1, 0] - h[0, 0, 0], w[0, 0, 1] - w[0, 0, 0])
            )
            np.testing.assert_array_equal(b.label[i].numpy(), sided().flat[index(b, i)])
    assert {step[0] for step in steps} == {step[1] for step in steps} == {1, -1}
    assert {step[2] for step in steps} == {1}
    held = Sampler(
        sampler.cases,
        replace(p, mirror=(True,) * 3),
        augmentation=replace(FLIPS, mirror=(False,) * 3),
    )
    assert all(
        (np.diff(index(held.batch(n), i).ravel()) == 1).all() for n in range(3) for i in range(8)
    )


def test_sagittal_slices_have_no_left_and_right(tmp_path: Path) -> None:
    p = plan(GRID[1:], swaps=((1, 2),), orientation="RSA")
    made = case(tmp_path, p, sided())  # stored as if its axes were R, S, A
    sampler = Sampler([made], p, augmentation=FLIPS)
    seen = set()
    for n in range(6):
        b = sampler.batch(n)
        for i in range(len(b)):
            where = index(b, i)
            seen.add((where[1, 0] > where[0, 0], where[0, 1] > where[0, 0]))
            np.testing.assert_array_equal(
                b.label[i].numpy(), sided().flat[where]
            )  # mirrored, and nothing swapped
    assert len(seen) == 4


# --- who labelled what ----------------------------------------------------------------------------


def test_unlabelled_items_are_the_last_and_nothing_is_said_about_them(tmp_path: Path) -> None:
    p = plan(batch_size=3)
    cases = [
        case(tmp_path, p, None, "u1"),
        case(tmp_path, p, organs(), "l"),
        case(tmp_path, p, None, "u2"),
    ]
    sampler = Sampler(cases, p, unlabelled=2)
    batches = [sampler.batch(n) for n in range(20)]
    assert all(b.case[0] == 1 and (b.label[0] >= 0).any() for b in batches)
    assert all((b.label[1:] == IGNORE).all() for b in batches)
    assert {int(c) for b in batches for c in b.case[1:]} == {0, 2}
    for size in (2, 3):  # with a single labelled item, every second one
        sampler = Sampler(
            cases, replace(p, batch_size=size), augmentation=STILL, unlabelled=size - 1
        )
        held = [bool((sampler.batch(n).label[0] > 0).any()) for n in range(20)]
        assert all(held[1::2])
        assert not all(held[::2])


def test_labels_that_replace_others_are_used_and_searched_for_roi(tmp_path: Path) -> None:
    p = plan()
    cases = [case(tmp_path, p, None, "u"), case(tmp_path, p, np.zeros(GRID, np.int16), "l")]
    pseudo = np.full(GRID, IGNORE, np.int16)
    pseudo[2:5], pseudo[10, 10, 10], pseudo[18] = (
        0,
        2,
        5,
    )  # class 5 is a context of its background, no ROI
    for name in "ul":
        np.save(tmp_path / f"{name}.npy", pseudo)
    labels = {name: tmp_path / f"{name}.npy" for name in "ul"}
    sampler = Sampler(cases, p, augmentation=STILL, labels=labels)
    seen = set()
    for n in range(20):
        b = sampler.batch(n)
        for i in range(len(b)):
            np.testing.assert_array_equal(b.label[i].numpy(), pseudo.flat[index(b, i)])
            assert i % 2 == 0 or 2 in b.label[i]
            seen |= {(int(b.case[i]), int(k)) for k in b.label[i].unique()}
    assert seen == {(c, k) for c in (0, 1) for k in (IGNORE, 0, 2, 5)}
    only = Sampler(cases, p, augmentation=STILL, labels={"u": labels["u"]})
    assert {int(c) for n in range(10) for c in only.batch(n).case[1::2]} == {
        0
    }  # the other has no ROI
    with pytest.raises(ContextsegError, match="all have labels"):
        Sampler(cases, p, labels=labels, unlabelled=1)


def test_what_people_labelled_is_at_least_half_of_the_labelled_items(tmp_path: Path) -> None:
    p = plan()
    humans = [case(tmp_path, p, organs(), "h")]
    joined = [case(tmp_path, p, None, f"j{i}") for i in range(7)]
    np.save(tmp_path / "organs.npy", organs())
    labels = {made.record.name: tmp_path / "organs.npy" for made in joined}

    def shares(sampler: Sampler) -> tuple[float, float]:
        """Of the items that lie anywhere, and of those on an organ, how many are of the case 0."""
        labelled = sampler.plan.batch_size - sampler.unlabelled
        cases = torch.cat([sampler.batch(n).case[:labelled] for n in range(60)])
        return float((cases[::2] == 0).float().mean()), float((cases[1::2] == 0).float().mean())

    none = case(tmp_path, p, None, "u")
    for sampler in (
        Sampler(humans + joined, p, labels=labels),
        Sampler([*humans, *joined, none], p, labels=labels, unlabelled=2),
        Sampler([*humans, *joined, none], replace(p, batch_size=2), labels=labels, unlabelled=1),
    ):
        assert all(0.5 <= share < 0.75 for share in shares(sampler))
    assert max(shares(Sampler(joined, p, labels=labels))) < 0.3  # no person labelled one: all alike
    empty = [case(tmp_path, p, np.zeros(GRID, np.int16), "e")]
    anywhere, on_roi = shares(Sampler(empty + joined, p, labels=labels))
    assert anywhere >= 0.5
    assert on_roi == 0  # what a person found free of organs still holds none


def test_replaced_labels_that_are_damaged_or_of_another_size_are_named(tmp_path: Path) -> None:
    p = plan()
    cases = [case(tmp_path, p, organs(), "a")]
    path = tmp_path / "relabel" / "a.npy"
    path.parent.mkdir()
    np.save(path, np.zeros((3, 4, 5), np.int16))
    with pytest.raises(
        ContextsegError, match=r"a\.npy: a label of \(3, 4, 5\) voxels.*delete the folder .*relabel"
    ):
        Sampler(cases, p, labels={"a": path}).batch(0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ContextsegError, match=r"a\.npy: .*damaged.*delete the folder .*relabel"):
        Sampler(cases, p, labels={"a": path}).batch(0)


def test_pools_that_are_empty_are_problems(tmp_path: Path) -> None:
    p = plan(batch_size=2)
    labelled, unlabelled = case(tmp_path, p, organs(), "l"), case(tmp_path, p, None, "u")
    with pytest.raises(ContextsegError, match="none has a label"):
        Sampler([], p)
    with pytest.raises(ContextsegError, match="none has a label"):
        Sampler([unlabelled], p)
    with pytest.raises(ContextsegError, match="all have labels"):
        Sampler([labelled], p, unlabelled=1)
    with pytest.raises(
        ContextsegError, match=r"2 of the 2 items of a batch are unlabelled.*raise it to 4"
    ):
        Sampler([labelled, unlabelled], p, unlabelled=2)
    assert len(Sampler([labelled, unlabelled], p, unlabelled=1).batch(0)) == 2
    with pytest.raises(ContextsegError, match="seed=-1"):
        Sampler([labelled], p, seed=-1)


# --- every slice once an epoch --------------------------------------------------------------------


def places(batch: Batch) -> list[tuple[int, int]]:
    """(case, slice) of each item, of cases of slices of 10 x 12."""
    return [(int(c), int(index(batch, i).max()) // 120) for i, c in enumerate(batch.case)]


def test_every_slice_is_drawn_once_an_epoch_in_another_order(tmp_path: Path) -> None:
    p = plan((10, 12), orientation="SAR")
    cases = [case(tmp_path, p, organs((n, 10, 12)), name) for n, name in ((8, "a"), (9, "b"))]
    sampler = SliceSampler(cases, p, 3, STILL)
    assert len(sampler) == 17
    drawn = [place for n in range(9) for place in places(sampler.batch(n))]
    every = [(0, z) for z in range(8)] + [(1, z) for z in range(9)]
    assert sorted(drawn[:17]) == sorted(drawn[17:34]) == every
    assert drawn[:17] not in (drawn[17:34], every)
    parts = [places(sampler.batch(2, rank, 3)) for rank in range(3)]
    assert [len(part) for part in parts] == [2, 1, 1]
    assert sorted(place for part in parts for place in part) == sorted(drawn[8:12])

    checked = SliceSampler(cases, p, 0, STILL, in_order=True)
    assert [len(checked.batch(n)) for n in range(6)] == [4, 4, 4, 4, 1, 0]
    assert [place for n in range(5) for place in places(checked.batch(n))] == every


def test_a_larger_slice_gives_a_part_and_a_smaller_one_is_padded(tmp_path: Path) -> None:
    for side, whole in (((4, 5), False), ((16, 20), True)):
        p = replace(plan(side), batch_size=6)
        cases = [case(tmp_path / str(side), p, organs((8, 10, 12)))]
        batch = SliceSampler(cases, p, 0, STILL).batch(0)
        assert batch.image.shape == (6, 1, *side)
        assert bool((batch.label == IGNORE).any()) == whole
        known = (batch.label != IGNORE).sum((1, 2))
        assert (known == known[0]).all()
        assert batch.complete.all()


def test_a_volume_has_no_single_slices_to_draw(tmp_path: Path) -> None:
    p = plan()
    with pytest.raises(ContextsegError, match="dims=2"):
        SliceSampler([case(tmp_path, p, organs())], p)
