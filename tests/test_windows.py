"""CT windows: their numbers, and that a run sees one CT through several of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import laws
from contextseg.data import phantom
from contextseg.data.cache import preprocess
from contextseg.data.ct_windows import CT_WINDOWS, apply_ct_windows, ct_window
from contextseg.data.layouts import open_dataset
from contextseg.data.plan import PLACE, Channel, Facts, Plan, make_plan
from contextseg.data.prepare import normalise, prepare
from contextseg.data.sampling import Sampler
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.methods import METHODS, Supervised
from contextseg.volume import Volume

FLARE = ("abdomen", "chest", "bone")


def planned(windows: object = FLARE, channels: tuple[str, ...] = ("CT",)) -> Plan:
    facts = [Facts("a", (20, 24, 24), (2.0, 1.0, 1.0), "SAR", ())]
    classes = ("background", "liver")
    regions = {"liver": (1,)}
    return make_plan(
        "set", classes, (0, 1), regions, channels, facts, patch_vox=(16, 16, 16), ct_windows=windows
    )


# --- numbers --------------------------------------------------------------------------------------


def test_the_published_bytes() -> None:
    """Pham et al.'s images keep the whole part of 255 times the window."""
    hu = np.array([-1000, 0, 50, 100, 1000])
    found = np.floor(apply_ct_windows(hu, ["abdomen", "chest", "spine"]) * 255)
    assert found.tolist() == [
        [0, 95, 127, 159, 255],
        [56, 218, 226, 234, 255],
        [0, 70, 77, 85, 212],
    ]


@pytest.mark.parametrize("name", CT_WINDOWS)
def test_a_window_is_a_line_between_its_ends_and_flat_beyond(name: str) -> None:
    low, high = CT_WINDOWS[name]
    assert low < high
    hu = np.array([[low - 1000, low, low + 0.25 * (high - low)], [high, high + 0.1, 4000]])
    found = apply_ct_windows(hu, [name])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[[0, 0, 0.25], [1, 1, 1]]], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "width", "level"),
    [
        ("abdomen", 400, 50),
        ("bone", 1800, 400),
        ("lung", 1500, -600),
        ("mediastinum", 350, 50),
        ("liver", 150, 30),
        ("brain", 80, 40),
        ("soft_tissue", 400, 40),
    ],
)
def test_widths_and_levels(name: str, width: float, level: float) -> None:
    low, high = ct_window(name)
    assert (high - low, (low + high) / 2) == (width, level)


def test_names_are_forgiving_and_unknown_ones_answered() -> None:
    assert ct_window(" Soft-Tissue ") == ct_window("soft tissue") == CT_WINDOWS["soft_tissue"]
    assert apply_ct_windows(np.zeros((2, 3)), []).shape == (0, 2, 3)
    with pytest.raises(ContextsegError, match=r"'abdomne'.*no such window.*abdomen"):
        apply_ct_windows(np.zeros(3), ["abdomne"])


# --- in a plan ------------------------------------------------------------------------------------


def test_a_plan_with_windows_makes_several_channels_of_one() -> None:
    plan = planned()
    assert [(c.name, c.kind, c.low, c.high, c.source) for c in plan.channels] == [
        ("CT", "window", -150, 250, 0),
        ("CT", "window", -1350, 225, 0),
        ("CT", "window", -500, 1300, 0),
    ]
    assert plan.scanned == ("CT",)
    assert plan.ct
    assert planned("abdomen, chest,bone") == plan  # as the command line gives them
    assert planned(()).channels == (Channel("CT", "zscore"),)
    assert replace(plan, channels=(Channel("T1", "zscore"), Channel("T2", "zscore"))).scanned == (
        "T1",
        "T2",
    )


def test_windows_are_for_one_ct() -> None:
    for channels in (("MR",), ("CT", "PET"), ("CT", "CT")):
        with pytest.raises(
            ContextsegError, match=r"one channel, CT; these have .*name the channel CT"
        ):
            planned(channels=channels)
    with pytest.raises(ContextsegError, match="no such window"):
        planned(("abdomen", "knee"))


def test_a_plan_on_disk_keeps_its_windows_and_is_checked(tmp_path: Path) -> None:
    plan = planned()
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    for wrong, what in (({"source": 2}, "first, second"), ({"high": -1350.0}, "low end is below")):
        content = read_json(tmp_path / "plan.json")
        content["channels"][1] |= wrong
        write_json(tmp_path / "wrong.json", content)
        with pytest.raises(ContextsegError, match=what):
            Plan.load(tmp_path / "wrong.json")
    content = read_json(tmp_path / "plan.json")
    content["channels"] = [
        {"name": "CT", "kind": "zscore"},
        {"name": "PET", "kind": "zscore"},
    ]  # as before windows
    write_json(tmp_path / "old.json", content)
    assert Plan.load(tmp_path / "old.json").scanned == ("CT", "PET")


def test_a_scan_is_seen_through_the_windows_of_its_plan() -> None:
    hu = np.random.default_rng(0).uniform(-1200, 1500, (1, 6, 7, 8)).astype(np.float32)
    plan = replace(planned(), spacing_mm=(1.0, 1.0, 1.0))
    scan = Volume(hu, np.array([[0.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]))
    image, _, _, record = prepare(scan, plan, "", np.ones((6, 7, 8), np.int16))
    np.testing.assert_allclose(
        normalise(image, plan.channels, record), apply_ct_windows(hu[0], FLARE), atol=1e-6
    )
    with pytest.raises(
        ContextsegError, match=r"2 channels; this data set has 1.*give the channels CT,"
    ):
        prepare(Volume(np.concatenate([hu, hu]), scan.affine), plan, "p")


def test_channels_may_come_from_any_of_a_scans() -> None:
    image = np.stack([np.full((2, 3, 4), value, np.float32) for value in (50.0, 30.0)])
    kinds = (Channel("PET", "none", source=1), Channel("CT", "window", 0.0, 100.0, source=0))
    plan = replace(laws.plan(), channels=kinds)
    assert plan.scanned == ("CT", "PET")
    affine = np.array([[0.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    record = prepare(Volume(image, affine), plan, "", np.ones((2, 3, 4), np.int16))[3]
    assert normalise(image, kinds, record)[:, 0, 0, 0].tolist() == [30.0, 0.5]


def test_the_cache_gives_a_patch_through_the_windows(tmp_path: Path) -> None:
    """Phantoms span 400 units about 0; int16 then keeps them to a hundredth, which is a 10,000th of
    a window.
    """
    folder = phantom.write_dataset(tmp_path / "data", labelled=1, test=0)
    content = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", {**content, "channel_names": {"0": "CT"}})
    data = open_dataset(folder)
    plan = replace(planned(), orientation="SAR", spacing_mm=(2.0, 1.0, 1.0))
    case = preprocess(data, data.train, plan, tmp_path / "cache")[0]
    assert case.image.shape[0] == 1  # stored once
    box = (slice(2, 9), slice(3, 10), slice(1, 12))
    patch = case.patch(box, plan.channels)
    assert patch.shape == (3, 7, 7, 11)
    raw = case.patch(box, [Channel("CT", "none")])[0]
    np.testing.assert_allclose(patch, apply_ct_windows(raw, FLARE), atol=1e-5)
    assert len(np.unique(patch[0])) > 50


# --- a slice's place ------------------------------------------------------------------------------


def placed(dims: int = 2) -> Plan:
    return replace(laws.plan(dims), channels=(Channel("MR", "zscore"), PLACE))


def test_a_plan_may_add_the_slices_place(tmp_path: Path) -> None:
    facts = [Facts("a", (20, 24, 24), (2.0, 1.0, 1.0), "SAR", ())]
    names = (("background", "liver"), (0, 1), {"liver": (1,)}, ("T1", "T2"))
    plan = make_plan("set", *names, facts, patch_vox=(16, 16, 16), slice_position=True)
    assert [c.kind for c in plan.channels] == ["zscore", "zscore", "place"]
    assert (plan.scanned, plan.intensities) == (("T1", "T2"), 2)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    for order in ((2, 0, 1), (2,)):
        content = read_json(tmp_path / "plan.json")
        content["channels"] = [content["channels"][i] for i in order]
        write_json(tmp_path / "wrong.json", content)
        with pytest.raises(ContextsegError, match="place is the last channel"):
            Plan.load(tmp_path / "wrong.json")


def test_a_patch_knows_how_far_down_its_case_it_lies(tmp_path: Path) -> None:
    data = open_dataset(phantom.write_dataset(tmp_path / "data", labelled=1, test=0))
    plan = placed()
    case = preprocess(data, data.train, plan, tmp_path / "cache")[0]
    depth, height, width = case.image.shape[1:]
    patch = case.patch((slice(3, 6), slice(0, 4), slice(0, 5)), plan.channels)
    expected = (np.arange(3, 6) + 0.5) / depth
    np.testing.assert_allclose(
        patch[1], np.broadcast_to(expected[:, None, None], (3, 4, 5)), rtol=1e-6
    )
    whole = tuple(slice(0, n) for n in (depth, height, width))
    np.testing.assert_array_equal(
        case.patch(whole, plan.channels)[0], case.patch(whole, plan.channels[:1])[0]
    )
    without = replace(plan, channels=plan.channels[:1])
    seen = Sampler([case], plan).batch(1), Sampler([case], without).batch(1)
    assert torch.equal(seen[0].image[:, :1], seen[1].image)  # all else is drawn as before ...
    allowed = (np.arange(depth) + 0.5).astype(np.float32) / np.float32(depth)
    for place in seen[0].image[:, 1]:  # ... and what happens to intensities does not happen to it
        assert np.abs(allowed - float(place.max())).min() < 1e-6


@pytest.mark.parametrize("net", ["unet", "transunet-small"])
def test_every_network_takes_the_slices_place(net: str) -> None:
    """One channel more; TransUNet, as published, sees it in its head alone."""
    torch.manual_seed(0)
    method = Supervised(placed(), net=net).eval()
    image = torch.randn(2, 2, 32, 32)
    image[:, 1] = torch.tensor([0.25, 0.75]).view(2, 1, 1)
    image[1, 0] = image[0, 0]
    z = method.predict(image)
    assert z.shape == (2, 3, 32, 32)
    assert not torch.equal(z[0], z[1])
    if net != "unet":
        assert method.net.position


def test_stcn_has_no_use_for_it() -> None:
    with pytest.raises(ContextsegError, match=r"slice_position.*leave it out"):
        METHODS["stcn"](placed())
