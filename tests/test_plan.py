"""From facts to a plan: every rule by hand, and a memory estimate that is held to a real training
step.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from contextseg.data import plan as room
from contextseg.data.cache import fingerprint
from contextseg.data.layouts import open_dataset
from contextseg.data.plan import Channel, Facts, Plan, lateral, make_plan, target_spacing
from contextseg.data.topology import largest_patch, topology, training_gb
from contextseg.errors import ContextsegError

DEMO = Path(room.__file__).parents[1] / "demo_data"


def facts(
    number: int = 20,
    shape: tuple[int, int, int] = (120, 160, 160),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    roi: object = (),
) -> list[Facts]:
    return [Facts(f"case_{i}", shape, spacing, "LPS", roi) for i in range(number)]


def planned(data: list[Facts], **arguments: object) -> Plan:
    arguments = {"classes": ("background", "tumour"), "channels": ("MR",)} | arguments
    classes = arguments.pop("classes")
    regions = {name: (k,) for k, name in enumerate(classes) if k}
    return make_plan(
        "set", classes, range(len(classes)), regions, arguments.pop("channels"), data, **arguments
    )


# --- on disk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_a_plan_is_the_same_after_json(dims: int, tmp_path: Path) -> None:
    roi = (np.linspace(-50, 200, 1001), np.zeros(1001))
    plan = planned(
        facts(roi=roi),
        dims=dims,
        classes=("background", "kidney_left", "kidney_right"),
        channels=("CT", "PET"),
        spacing_mm=np.array([2.0, 1.5, 1.25]),
    )
    assert (plan.swaps, plan.channels[0].kind, plan.dims) == (((1, 2),), "ct", dims)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert repr(again) == repr(plan)  # no list where a tuple was, no float for an int


def test_regions_by_their_label_values() -> None:
    plan = planned(facts(), classes=("background", "edema", "core"))
    plan = replace(plan, values=(0, 2, 7), regions={"tumour": (1, 2), "core": (2,)})
    assert plan.region_values() == {"tumour": [2, 7], "core": [7]}


def test_what_a_person_writes_into_the_file_is_what_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = planned(facts())
    plan.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["patch_vox"] = [64, 48, 40]
    content["channels"][0]["kind"] = "rescale"
    path.write_text(json.dumps(content), encoding="utf-8")
    loaded = Plan.load(path)
    assert loaded == replace(plan, patch_vox=(64, 48, 40), channels=(Channel("MR", "rescale"),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("batch_size"), "batch_size"),
        (lambda c: c.pop("channels"), "'channels' is missing"),
        (lambda c: c.update(patch=1), "patch"),
        (lambda c: c.update(channels=[{"nom": "MR"}]), "nom"),
        (lambda c: c.update(regions=[1]), "not a plan"),
        (lambda c: c.update(orientation="SAX"), "SAX"),
        (lambda c: c.update(spacing_mm=[1, 0, 1]), "spacing_mm has three positive numbers"),
        (lambda c: c.update(spacing_mm=["1", "1", "1"]), "not a plan"),
        (lambda c: c.update(patch_vox=[64, 64.5, 64]), "patch_vox"),
        (lambda c: c.update(patch_vox=[64, 64]), "as many axes as patch_vox"),
        (lambda c: c.update(batch_size=0), "batch_size"),
        (lambda c: c.update(mirror=[True]), "mirror"),
        (lambda c: c.update(values=[0]), "each class has one value"),
        (lambda c: c.update(values=[1] * len(c["classes"])), "each once"),
        (lambda c: c.update(widths=[2**32] * len(c["widths"])), "a width is at most 16384"),
        (lambda c: c.update(kernels=[[2**31 + 1] * 3] * len(c["kernels"])), "at most 99"),
        (lambda c: c.update(values=[2**31, *c["values"][1:]]), "32 bits"),
        (lambda c: c.update(swaps=[[1, 2]]), "regions and swaps name classes"),
        (lambda c: c.update(regions={"tumour": [2]}), "regions and swaps name classes"),
        (lambda c: c.update(channels=[]), "there is a channel"),
        (lambda c: c.update(widths=c["widths"][:-1]), "as many levels"),
    ],
)
def test_a_damaged_plan_is_a_problem_that_says_what_is_wrong(
    change: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    content = asdict(planned(facts()))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ContextsegError, match=r"plan\.json") as caught:
        Plan.load(path)
    assert message in str(caught.value)


def test_no_plan_and_half_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(ContextsegError, match="does not exist"):
        Plan.load(path)
    planned(facts()).save(path)
    path.write_text(path.read_text(encoding="utf-8")[:200])
    with pytest.raises(ContextsegError, match="not valid JSON"):
        Plan.load(path)
    path.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(ContextsegError, match="not a plan"):
        Plan.load(path)


# --- spacing, orientation -------------------------------------------------------------------------


def test_target_spacing_is_the_median_but_for_thick_slices() -> None:
    even = np.array([[2.0, 1, 1], [3, 1.2, 1.2], [2.5, 1.1, 1.1]])
    shapes = np.array([[40, 200, 200]] * 3)
    np.testing.assert_allclose(
        target_spacing(even, shapes), [2.5, 1.1, 1.1]
    )  # 2.5 is not over 3 * 1.1
    thick = np.array([[4.0, 1, 1], [5, 1, 1], [6, 1, 1]])
    few = np.array([[20, 200, 200]] * 3)
    np.testing.assert_allclose(
        target_spacing(thick, few), [4.2, 1, 1]
    )  # a tenth of the way along 4, 5, 6
    many = np.array([[90, 200, 200]] * 3)  # 90 slices are not few beside 200 columns
    np.testing.assert_allclose(target_spacing(thick, many), [5, 1, 1])
    mixed = np.array(
        [[0.5, 1, 1], [8, 1, 1], [8, 1, 1], [8, 1, 1]]
    )  # their tenth percentile, 2.75, is finer than 3 mm
    np.testing.assert_allclose(target_spacing(mixed, few[[0] * 4]), [2.75, 1, 1])
    fine = np.array([[0.5, 1, 1], [0.5, 1, 1], [8, 1, 1], [8, 1, 1], [8, 1, 1]])
    np.testing.assert_allclose(
        target_spacing(fine, few[[0] * 5]), [1, 1, 1]
    )  # never finer than in plane
    np.testing.assert_allclose(
        target_spacing(thick[:, [1, 2, 0]], few[:, [1, 2, 0]]), [1, 1, 4.2]
    )  # whichever axis


def test_slices_of_a_2d_network_lie_across_the_thick_axis() -> None:
    axial = planned(facts(spacing=(3.0, 1.0, 1.0)), dims=2)
    assert (axial.orientation, axial.spacing_mm, axial.lateral_axis) == ("SAR", (3.0, 1.0, 1.0), 2)
    sagittal = planned(facts(shape=(256, 240, 30), spacing=(1.0, 1.1, 4.0)), dims=2)
    assert (sagittal.orientation, sagittal.spacing_mm, sagittal.lateral_axis) == (
        "RSA",
        (4.0, 1.0, 1.1),
        0,
    )
    assert sagittal.patch_vox == (256, 256)  # 240 lies halfway between multiples of the stride, 32
    coronal = planned(facts(shape=(256, 30, 240), spacing=(1.0, 4.0, 1.1)), dims=2)
    assert (coronal.orientation, coronal.lateral_axis) == ("ASR", 2)
    assert (
        planned(facts(spacing=(1.0, 1.0, 1.2)), dims=2).orientation == "SAR"
    )  # none is clearly thicker
    assert planned(facts(spacing=(1.0, 1.0, 4.0)), dims=3).orientation == "SAR"


# --- the network's shape --------------------------------------------------------------------------


def test_topology_of_cubes() -> None:
    strides, kernels = topology((64, 64, 64), (1.5, 1.5, 1.5))
    assert strides == ((1, 1, 1), *[(2, 2, 2)] * 4)  # 64 32 16 8 4
    assert kernels == ((3, 3, 3),) * 5
    assert topology((64, 64, 64), (1.5, 1.5, 1.5), max_levels=3)[0] == (
        (1, 1, 1),
        (2, 2, 2),
        (2, 2, 2),
    )
    assert topology((7, 7), (1, 1)) == (((1, 1),), ((3, 3),))  # 3 voxels would be left
    assert topology((8, 7), (1, 1)) == (((1, 1), (2, 1)), ((3, 3), (3, 3)))


def test_topology_of_thick_slices() -> None:
    """20 x 256 x 256 voxels of 5 x 0.8 x 0.8 mm, level by level."""
    strides, kernels = topology((20, 256, 256), (5, 0.8, 0.8))
    assert strides == (
        (1, 1, 1),
        (1, 2, 2),  # 20 128 128 voxels of 5 1.6 1.6
        (1, 2, 2),  # 20  64  64       of 5 3.2 3.2
        (2, 2, 2),  # 10  32  32       of 10 6.4 6.4: now within a factor of two
        (2, 2, 2),  #  5  16  16       of 20 12.8 12.8
        (1, 2, 2),  #  5   8   8       of 20 25.6 25.6: 5 slices cannot be halved
        (1, 2, 2),  #  5   4   4
    )
    assert kernels == (
        (1, 3, 3),
        (1, 3, 3),
        *[(3, 3, 3)] * 5,
    )  # 3 stays 3 when the slices are the finest at last
    two, _ = topology((40, 40, 40), (2, 1, 1))  # exactly twice as thick waits
    assert two[:3] == ((1, 1, 1), (1, 2, 2), (2, 2, 2))


def test_a_level_never_has_fewer_than_four_voxels_along_a_halved_axis() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        dims = int(rng.integers(2, 4))
        patch, spacing = rng.integers(1, 300, dims), rng.uniform(0.3, 6, dims)
        strides, kernels = topology(patch, spacing)
        total = np.prod(strides, axis=0)
        assert len(strides) == len(kernels) <= 7
        assert ((patch // total >= 4) | (total == 1)).all()
        assert strides[0] == (1,) * dims
        assert (np.diff(kernels, axis=0) >= 0).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (2.0, 2.0, 1.0)])
@pytest.mark.parametrize("shape", [(30, 200, 250), (200, 200, 200), (20, 25, 30), (1, 64, 64)])
def test_the_patch_grows_with_memory_fits_into_it_and_not_beyond_the_median_case(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    plans = [
        planned(facts(shape=shape, spacing=spacing), memory_gb=gb) for gb in (0.5, 1, 2, 4, 8, 32)
    ]
    sizes = [int(np.prod(p.patch_vox)) for p in plans]
    assert sizes == sorted(sizes)
    for p, gb in zip(plans, (0.5, 1, 2, 4, 8, 32)):
        assert training_gb(p.patch_vox, p.batch_size, 2, p.widths, p.strides, p.kernels) <= gb
        stride = np.prod(p.strides, axis=0)
        assert (np.array(p.patch_vox) <= np.array(shape) + stride / 2).all()
        assert (np.array(p.patch_vox) % stride == 0).all()
    if max(shape) > 100:
        assert sizes[-1] > 4 * sizes[0]
    else:
        assert (np.array(plans[-1].patch_vox) > 0.7 * np.array(shape)).all()


def test_a_patch_has_equal_extents_in_mm() -> None:
    patch = largest_patch(
        np.array([100, 500, 500]), np.array([3.0, 1, 1]), lambda p: np.prod(p) < 400_000
    )
    extent = np.array(patch) * [3.0, 1, 1]
    assert extent.max() < 1.25 * extent.min()
    assert largest_patch(np.array([100, 100]), np.array([1.0, 1]), lambda p: False) is None
    assert largest_patch(np.array([5, 6]), np.array([1.0, 1]), lambda p: True) == (5, 6)


def test_a_batch_holds_at_most_a_twentieth_of_the_data() -> None:
    shape, patch = (10, 64, 64), (64, 64)
    few = planned(facts(8, shape, (4.0, 1.0, 1.0)), dims=2, patch_vox=patch, memory_gb=100)
    assert few.batch_size == 4  # 5 % of 8 cases of 10 slices
    assert planned(facts(1, shape, (4.0, 1.0, 1.0)), dims=2, patch_vox=patch).batch_size == 2
    many = planned(facts(1000, shape, (4.0, 1.0, 1.0)), dims=2, patch_vox=patch, memory_gb=1)
    cost = [
        training_gb(patch, many.batch_size + i, 2, many.widths, many.strides, many.kernels)
        for i in (0, 1)
    ]
    assert cost[0] <= 1 < cost[1]
    assert many.batch_size > 4


def test_the_embedded_scans_get_a_patch_like_nnunets() -> None:
    data = open_dataset(DEMO)
    found = fingerprint(data, data.train)
    plan = make_plan(data.name, data.classes, data.values, data.regions, data.channels, found)
    spacing = np.median([f.spacing_mm for f in found], axis=0)
    np.testing.assert_allclose(plan.spacing_mm, spacing)
    median = np.median([np.array(f.shape) * f.spacing_mm / spacing for f in found], axis=0)
    assert np.abs(np.array(plan.patch_vox) - median).max() <= 8  # half of the largest stride, 16
    assert plan.batch_size == 2
    assert plan.widths[:4] == (32, 64, 128, 256)
    assert len(plan.widths) == 5
    assert (plan.channels, plan.mirror, plan.swaps) == (
        (Channel("T1", "zscore"),),
        (True, True, True),
        (),
    )


_STEP = """
import gc, json, sys, torch
torch.set_num_threads(1)
from contextseg.batch import Batch
from contextseg.data.plan import Channel, Plan
from contextseg.data.topology import topology, training_gb
from contextseg.methods import METHODS

def memory(name):
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20

def step(patch, batch, classes, width):
    dims = len(patch)
    strides, kernels = topology(patch, [1.0] * dims)
    widths = [width * 2**i for i in range(len(strides))]
    names, mr = tuple(map(str, range(classes))), (Channel("MR", "zscore"),)
    ones, values, net = (1, 1, 1), tuple(range(classes)), (widths, strides, kernels)
    plan = Plan("", names, values, {}, mr, "SAR", ones, patch, batch, ones, (), *net)
    method = METHODS["supervised"](plan).train()
    optimizer, = method.optimizers(0.01).values()
    label = torch.randint(0, classes, (batch, *patch))
    known = torch.ones(batch, classes, dtype=bool)
    item = Batch(torch.randn(batch, 1, *patch), label, known, torch.arange(batch))
    for _ in range(2):
        sum(method(item).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return training_gb(patch, batch, classes, widths, strides, kernels)

step((8,) * len(json.loads(sys.argv[1])[0]), 1, 2, 4)
gc.collect()
before = memory("VmRSS")
patch, *rest = json.loads(sys.argv[1])
print(step(tuple(patch), *rest), memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    "shape", [[[32, 32, 32], 4, 2, 16], [[16, 40, 40], 2, 20, 16], [[144, 144], 6, 2, 16]]
)
def test_the_memory_estimate_is_that_of_a_real_step(shape: list) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _STEP, json.dumps(shape)],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    estimate, peak = map(float, ran.stdout.split())
    assert 1 / 1.6 < estimate / peak < 1.6


# --- what is given --------------------------------------------------------------------------------


def test_what_is_given_is_kept_and_the_rest_follows() -> None:
    plan = planned(
        facts(),
        spacing_mm=(4, 4, 4),
        patch_vox=(32, 32, 32),
        batch_size=4,
        base_width=16,
        max_width=64,
        max_levels=4,
    )
    assert plan.spacing_mm == (4.0, 4.0, 4.0)
    assert (plan.patch_vox, plan.batch_size, plan.widths) == ((32, 32, 32), 4, (16, 32, 64, 64))
    assert plan.strides == topology((32, 32, 32), (1, 1, 1))[0]
    coarse = planned(facts(), spacing_mm=(4, 4, 4))  # 120 x 160 x 160 mm are 30 x 40 x 40 voxels
    assert coarse.patch_vox == (32, 40, 40)
    assert planned(facts(), batch_size=6).batch_size == 6
    thick = planned(facts(spacing=(5.0, 1.0, 1.0)))
    assert thick.orders == (1, 3, 3)
    assert planned(facts()).orders == (3, 3, 3)


def test_the_dice_of_a_batch_is_pooled_in_2d_or_where_asked() -> None:
    assert planned(facts(), dims=2).batch_dice
    assert not planned(facts()).batch_dice
    assert planned(facts(), batch_dice=True).batch_dice
    assert not planned(facts(), dims=2, batch_dice=False).batch_dice


@pytest.mark.parametrize(
    "given",
    [
        {"dims": 4},
        {"spacing_mm": (4, 4)},
        {"spacing_mm": (4, 0, 4)},
        {"patch_vox": (32, 32)},
        {"patch_vox": (32, 32, 32), "dims": 2},
        {"patch_vox": (32, -32, 32)},
        {"batch_size": 0},
        {"base_width": 0},
        {"max_levels": 0},
        {"memory_gb": 0},
        {"memory_gb": 0.001},
    ],
)
def test_what_makes_no_sense_is_a_problem(given: dict) -> None:
    with pytest.raises(ContextsegError, match="set:"):
        planned(facts(), **given)
    with pytest.raises(ContextsegError, match="no case"):
        planned([])


# --- left and right -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "swaps", "allowed"),
    [
        (["right_parotid", "mandible", "left_parotid"], ((1, 3),), True),
        (["kidney_left", "kidney_right", "liver"], ((1, 2),), True),
        (["Left-Hippocampus", "Right-Hippocampus"], ((1, 2),), True),
        (["KidneyL", "KidneyR"], ((1, 2),), True),
        (["Parotid L", "Parotid R", "Eye L", "Eye R"], ((1, 2), (3, 4)), True),
        (["LeftLung", "RightLung"], ((1, 2),), True),
        (["ctx-lh-insula", "ctx-rh-insula"], ((1, 2),), True),
        (["lung_lt", "lung_rt"], ((1, 2),), True),
        (["left", "right"], ((1, 2),), True),
        (["L", "R"], ((1, 2),), True),
        (["L"], (), True),
        (["left"], (), False),
        (["left_kidney", "liver"], (), False),
        (["left_kidney", "right_lung"], (), False),
        (["left_atrium"], (), False),
        (["left_atrium", "right_atrium"], (), False),
        (["heart_ventricle_left", "heart_ventricle_right"], (), False),
        (
            ["lung_upper_lobe_left", "lung_upper_lobe_right", "kidney_left", "kidney_right"],
            ((3, 4),),
            False,
        ),
        (["bright", "flair", "tumour", "liver", "rectum", "oesophagus"], (), True),
        (["cleft", "brightness_l2", "vertebrae_L5", "upright"], (), True),
        ([], (), True),
    ],
)
def test_sides(classes: list[str], swaps: tuple, allowed: bool) -> None:
    assert lateral(["background", *classes]) == (swaps, allowed)
    plan = planned(facts(), classes=("background", *classes, "one more"))
    assert plan.swaps == swaps
    assert plan.mirror == (True, True, allowed)
    sagittal = planned(facts(spacing=(1.0, 1.0, 4.0)), classes=("background", *classes), dims=2)
    assert sagittal.mirror == (allowed, True, True)


# --- intensities ----------------------------------------------------------------------------------


def test_ct_numbers_are_those_of_the_roi_of_the_given_cases_alone() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.normal(40, 60, size) for size in (500, 1200)]
    data = [
        Facts(f"{i}", (50, 60, 70), (1, 1, 1), "LPS", (tuple(v), v + 1000))
        for i, v in enumerate(samples)
    ]
    every = np.concatenate(samples)
    low, high = np.percentile(every, [0.5, 99.5])
    plan = planned(data, channels=("CT", "MR"))
    ct = plan.channels[0]
    assert (ct.name, ct.kind, plan.ct) == ("CT", "ct", True)
    np.testing.assert_allclose((ct.low, ct.high), (low, high))
    clipped = every.clip(low, high)
    np.testing.assert_allclose((ct.mean, ct.sd), (clipped.mean(), clipped.std()))
    assert plan.channels[1] == Channel("MR", "zscore")
    held_out = replace(data[1], roi=())  # its size still counts, its intensities do not
    alone = planned([data[0], held_out], channels=("CT", "MR")).channels[0]
    np.testing.assert_allclose((alone.low, alone.high), np.percentile(samples[0], [0.5, 99.5]))


def test_a_channels_name_says_how_it_is_normalised() -> None:
    names = ("T1", "noNorm", "rescale_to_0_1", "rgb_to_0_1", "zscore")
    kinds = [(c.kind, c.low, c.high) for c in planned(facts(), channels=names).channels]
    assert kinds == [
        ("zscore", 0, 0),
        ("none", 0, 0),
        ("rescale", 0, 0),
        ("rescale", 0, 255),
        ("zscore", 0, 0),
    ]
    unlabelled = planned(
        facts(), channels=("CT",)
    )  # CT without any label: no ROI to take numbers from
    assert (unlabelled.channels, unlabelled.ct) == ((Channel("CT", "zscore"),), True)
    one_voxel = planned(facts(1, roi=((37.0,),)), channels=(" ct ",))
    assert one_voxel.channels == (Channel(" ct ", "ct", 37.0, 37.0, 37.0, 1.0),)
