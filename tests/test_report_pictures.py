"""Pictures show patients the right way up, in mm; charts show what was logged and scored."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import contextseg
from contextseg.errors import ContextsegError
from contextseg.reports import demo_picture, overlay
from contextseg.reports.charts import _running_mean, _series, spread_charts, training_charts
from contextseg.reports.numbers import tidy
from contextseg.reports.pictures import svg
from contextseg.reports.planes import outlines, planes, side_by_side
from contextseg.volume import Volume, write

SAR = np.array(
    [[0.0, 0, 1, 0], [0, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]]
)  # 3 mm slices, 2 mm rows, 1 mm columns
SHAPE = (20, 30, 40)


def row(case, name="tumour", dsc=0.8, status="both", **more):
    return {"case": case, "class": name, "dsc": dsc, "status": status, **more}


# --- orientation and geometry ---------------------------------------------------------------------


def scan(folder, mark=None, orientation="SAR", image=None, reference=None, prediction=None):
    """A case of `SHAPE` (foot to head, back to front, left to right) stored along `orientation`."""
    if image is None:
        image = np.zeros((1, *SHAPE), np.float32)
        image[(0, *mark)] = 100
    case = {"case": "x"}
    for role, array in (("image", image), ("reference", reference), ("prediction", prediction)):
        if array is not None:
            case[role] = str(folder / f"{role}.nii.gz")
            write(case[role], Volume(array, SAR).oriented(orientation))
    return case


def seen(axes):
    """Where the brightest pixel of a picture lies: (x, y) from 0 to 1, y downwards, in what is
    shown.
    """
    image = axes.images[0]
    left, right, bottom, top = image.get_extent()
    pixels = np.asarray(image.get_array())
    y, x = np.unravel_index(pixels.argmax(), pixels.shape)
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    at_x = left + (x + 0.5) / pixels.shape[1] * (right - left)
    at_y = top + (y + 0.5) / pixels.shape[0] * (bottom - top)
    assert y0 > y1  # downwards
    return (at_x - x0) / (x1 - x0), (at_y - y1) / (y0 - y1)


@pytest.mark.parametrize("orientation", ["SAR", "SPL", "IAL", "RAS", "LPS", "PIR"])
def test_right_is_left_front_and_head_are_up(tmp_path, orientation):
    """Without a label the planes go through the middle; a voxel that is off it along one axis is
    seen in two planes.
    """
    d, h, w = (n // 2 for n in SHAPE)
    head = overlay(scan(tmp_path, (SHAPE[0] - 2, h - 1, w - 1), orientation), {}).axes
    front = overlay(scan(tmp_path, (d - 1, SHAPE[1] - 2, w - 1), orientation), {}).axes
    right = overlay(scan(tmp_path, (d - 1, h - 1, SHAPE[2] - 2), orientation), {}).axes
    axial, coronal, sagittal = 0, 1, 2
    assert seen(head[coronal])[1] < 0.25
    assert seen(head[sagittal])[1] < 0.25
    assert seen(front[axial])[1] < 0.25
    assert seen(front[sagittal])[0] < 0.3
    assert seen(right[axial])[0] < 0.25
    assert seen(right[coronal])[0] < 0.3


def test_letters_stand_at_their_edges(tmp_path):
    figure = overlay(scan(tmp_path, (1, 1, 1)), {})
    for axes, expected in zip(figure.axes, ("RLAP", "RLSI", "APSI")):
        at = {text.get_text(): text.get_position() for text in axes.texts}
        left, right, top, bottom = (at[letter] for letter in expected)
        assert left[0] < 0.1 < 0.9 < right[0]
        assert bottom[1] < 0.1 < 0.9 < top[1]


def box(*sides):
    label = np.zeros(SHAPE, np.uint8)
    label[tuple(slice(*side) for side in sides)] = 1
    return label


def noise():
    return np.random.default_rng(0).uniform(0, 100, (1, *SHAPE)).astype(np.float32)


def corners(lines):
    every = np.concatenate(lines)
    return every.min(0), every.max(0)


def test_contours_are_in_millimetres(tmp_path):
    """A box of 6 x 8 x 10 voxels of 3, 2 and 1 mm is 18 x 16 x 10 mm, in every plane."""
    case = scan(tmp_path, image=noise(), reference=box((4, 10), (10, 18), (12, 22)))
    axial, coronal, sagittal = planes(case, {"tumour": (1,)})
    for plane, size in ((axial, (10, 16)), (coronal, (10, 18)), (sagittal, (16, 18))):
        low, high = corners(plane.reference["tumour"])
        assert np.allclose(high - low, size)
        assert plane.grey.shape == (
            plane.box_mm[3] / {18: 3, 16: 2}[size[1]],
            plane.box_mm[2] / {10: 1, 16: 2}[size[0]],
        )
    assert (
        axial.field_mm == 60
    )  # the image is 40 x 60 mm there: less than the box and 40 mm around it
    low, high = corners(axial.reference["tumour"])
    # 40 mm wide in a field of 60 mm: 10 mm on each side; the box ends 40 - 22 = 18 mm from the
    # right of the patient
    assert np.allclose(low, (10 + 18, (30 - 18) * 2))


def test_the_field_holds_the_region_and_40_mm(tmp_path):
    image = np.zeros((1, 1, 200, 300), np.float32)
    label = np.zeros((1, 200, 300), np.uint8)
    label[0, 90:110, 140:160] = 1  # 40 x 20 mm
    (axial,) = planes(scan(tmp_path, image=image, reference=label), {"tumour": (1,)})
    assert axial.name == "axial"  # a 2-D image has one plane
    assert axial.field_mm == 40 + 80
    low, high = corners(axial.reference["tumour"])
    assert np.allclose((low + high) / 2, 60)
    assert axial.grey.shape == (60, 120)


def area(lines):
    """Shoelace, with holes counted as negative."""
    return abs(
        sum(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2 for x, y in (line.T for line in lines))
    )


def test_errors_are_what_only_one_of_them_has(tmp_path):
    """Moved to the left by two voxels: 2 x 8 voxels wrong at one side, and as many missed at the
    other.
    """
    case = scan(
        tmp_path,
        image=noise(),
        reference=box((4, 10), (10, 18), (12, 22)),
        prediction=box((4, 10), (10, 18), (10, 20)),
    )
    axial = planes(case, {"tumour": (1,)})[0]
    corner = 4 / 8  # a contour cuts an eighth of a pixel at each of four corners
    for lines in (axial.false, axial.missed):
        assert math.isclose(area(lines), (2 * 8 - corner) * 2)  # pixels of 2 x 1 mm
    assert (
        corners(axial.false)[0][0] > corners(axial.missed)[1][0]
    )  # the patient's left is at the right


def test_false_positives_beyond_10_mm_are_far(tmp_path):
    """Columns are 1 mm: with the reference's last at 9, 10 to 19 are near (10 mm inclusive), and
    20 to 25 far.
    """
    reference, prediction = box((8, 12), (10, 18), (2, 10)), box((8, 12), (10, 18), (2, 26))
    axial = planes(
        scan(tmp_path, image=noise(), reference=reference, prediction=prediction), {"tumour": (1,)}
    )[0]
    corner = 4 / 8
    assert math.isclose(area(axial.false), (10 * 8 - corner) * 2)
    assert math.isclose(area(axial.far), (6 * 8 - corner) * 2)
    assert 'class="far"' in svg(axial, "")


@pytest.mark.parametrize(("slices", "far"), [(3, False), (4, True)])
def test_near_counts_across_slices(tmp_path, slices, far):
    """A slice is 3 mm: what lies 3 slices above a part of the reference is near, 4 slices are 12
    mm.
    """
    reference, prediction = box((7, 14), (10, 18), (2, 10)), box((7, 14), (10, 18), (2, 10))
    prediction[10, 10:18, 30:34] = 1
    reference[[10 - slices, 10 + slices], 10:18, 30:34] = (
        1  # both, so that the plane goes through the tenth slice
    )
    axial = planes(
        scan(tmp_path, image=noise(), reference=reference, prediction=prediction), {"tumour": (1,)}
    )[0]
    assert bool(axial.far) is far
    assert bool(axial.false) is not far


def test_far_is_from_the_same_class(tmp_path):
    reference, prediction = box((8, 12), (10, 18), (2, 10)), box((8, 12), (10, 18), (2, 10))
    prediction[8:12, 10:18, 10:14] = 2  # beside the tumour, and nowhere in the reference
    axial = planes(
        scan(tmp_path, image=noise(), reference=reference, prediction=prediction),
        {"tumour": (1,), "cyst": (2,)},
    )[0]
    assert axial.far
    assert not axial.false


def test_nobody_said_is_no_error(tmp_path):
    reference = box((4, 10), (10, 18), (12, 22))
    prediction = box((4, 10), (10, 18), (10, 22))
    reference[:, :, 10:12] = 9
    case = scan(tmp_path, image=noise(), reference=reference, prediction=prediction)
    assert planes(case, {"tumour": (1,)})[0].false
    axial = planes(case, {"background": (0,), "tumour": (1,), "ignore": (9,)})[0]
    assert not axial.false
    assert list(axial.reference) == ["tumour"]


def test_planes_go_through_the_focus_or_the_largest(tmp_path):
    reference = box((2, 6), (4, 10), (4, 10))
    reference[14:16, 20:24, 30:34] = 2
    case = scan(tmp_path, image=noise(), reference=reference)
    regions = {"large": (1,), "small": (2,)}
    assert list(planes(case, regions)[0].reference) == ["large"]
    assert list(planes(case, regions, "small")[0].reference) == ["small"]
    assert list(planes(case, regions, "not there")[0].reference) == ["large"]


def several(folder, *predictions):
    """The paths of some predictions of a case."""
    paths = [folder / f"prediction{i}.nii.gz" for i in range(len(predictions))]
    for path, array in zip(paths, predictions):
        write(path, Volume(array, SAR))
    return paths


def test_side_by_side_all_look_at_the_same_place(tmp_path):
    """A second prediction with a stray voxel far off: each alone would be shown in a field of
    its own.
    """
    reference = box((9, 11), (14, 16), (10, 12))
    stray = reference.copy()
    stray[19, 29, 39] = 1
    case, regions = scan(tmp_path, image=noise(), reference=reference), {"tumour": (1,)}
    paths = several(tmp_path, reference, stray, np.zeros(SHAPE, np.uint8))
    alone = [planes({**case, "prediction": path}, regions) for path in paths]
    together = side_by_side(case, [*paths, None], regions)
    assert [len(found) for found in together] == [3] * 4
    for axis in range(3):
        assert len({found[axis].field_mm for found in together}) == 1
        assert len({found[axis].grey.tobytes() for found in together}) == 1
        assert together[0][axis].field_mm == alone[1][axis].field_mm
    assert [bool(found[0].missed) for found in together] == [False, False, True, False]
    assert [bool(found[0].prediction) for found in together] == [True, True, False, False]


def test_side_by_side_the_focus_may_be_in_one_prediction_alone(tmp_path):
    reference, made_up = box((2, 6), (4, 10), (4, 10)), box((2, 6), (4, 10), (4, 10))
    made_up[14:16, 20:24, 30:34] = 2
    paths = several(tmp_path, reference, made_up)
    found = side_by_side(
        scan(tmp_path, image=noise(), reference=reference),
        paths,
        {"large": (1,), "small": (2,)},
        "small",
    )
    assert [list(planes[0].prediction) for planes in found] == [[], ["small"]]
    assert [bool(planes[0].far) for planes in found] == [False, True]


def test_side_by_side_a_broken_prediction_stands_for_itself(tmp_path):
    reference = box((4, 10), (10, 18), (12, 22))
    case = scan(tmp_path, image=noise(), reference=reference)
    write(tmp_path / "small.nii.gz", Volume(np.zeros((3, 3, 3), np.uint8), SAR))
    (good,) = several(tmp_path, reference)
    found = side_by_side(
        case, [tmp_path / "none.nii.gz", good, tmp_path / "small.nii.gz"], {"tumour": (1,)}
    )
    assert "does not exist" in str(found[0])
    assert len(found[1]) == 3
    assert "its grid differs" in str(found[2])
    with pytest.raises(ContextsegError, match="no image is given"):
        side_by_side({"case": "x"}, [good], {"tumour": (1,)})


def test_a_grey_image_may_be_drawn_once(tmp_path):
    (plane, *_) = planes(scan(tmp_path, image=noise()), {})
    once, again = svg(plane, "", "grey-1"), svg(plane, "", "grey-1", again=True)
    assert '<image id="grey-1"' in once
    assert "data:image/png" not in again
    assert '<use href="#grey-1"/>' in again
    assert "<image id" not in svg(plane, "")


def test_the_centre_of_a_horseshoe_lies_in_it(tmp_path):
    label = box((4, 10), (10, 26), (8, 32))
    label[:, 14:, 12:28] = 0
    for plane in planes(scan(tmp_path, image=noise(), reference=label), {"mandible": (1,)}):
        assert plane.reference


def test_grey_values(tmp_path):
    """CT, told by its air, is shown from -160 to 240 HU; anything else by percentiles."""
    image = noise()
    image[0, 9, 15, 20:23] = -160, 40, 240  # the middle one of twenty, counted from the head
    image[0, 0] = -1000
    grey = planes(scan(tmp_path, image=image), {})[0].grey
    row_of_voxels = grey[SHAPE[1] - 1 - 15][::-1]
    assert row_of_voxels[20:23].tolist() == [
        0,
        128,
        255,
    ]  # 200 / 400 of 255 is 127.5, and rounds to even
    image = noise()
    low, high = np.percentile(image, (1, 99))
    grey = planes(scan(tmp_path, image=image), {})[0].grey
    expected = np.clip((image[0, 9] - low) / (high - low), 0, 1)[::-1, ::-1] * 255
    assert np.abs(grey - expected).max() < 0.51


@pytest.mark.parametrize("value", [0.0, 7.0, math.nan])
def test_an_image_of_one_value(tmp_path, value):
    (plane, *_) = planes(scan(tmp_path, image=np.full((1, *SHAPE), value, np.float32)), {})
    assert len(np.unique(plane.grey)) == 1


def test_outlines_of_a_ring_are_two():
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:8] = True
    mask[3:6, 3:6] = False
    lines = outlines(mask)
    assert len(lines) == 2
    assert all((line[0] == line[-1]).all() for line in lines)
    assert all(
        len(line) == 9 for line in lines
    )  # four sides and four cut corners, closed: nothing straight in between
    assert math.isclose(
        area(lines), 49 - 9 - 0.5 + 0.5
    )  # eight cut corners: those of the hole cut the other way
    assert outlines(np.zeros((4, 4), bool)) == []


def test_a_picture_has_its_words(tmp_path):
    case = scan(tmp_path, image=noise(), reference=box((4, 10), (10, 18), (12, 22)))
    text = svg(planes(case, {'a "b" <c>': (1,)})[0], 'case "1" <x>')
    assert 'aria-label="case &quot;1&quot; &lt;x&gt;"' in text
    assert "<title>a &quot;b&quot; &lt;c&gt;, reference</title>" in text
    assert ">10 mm</text>" in text  # the longest round length within a quarter of 60 mm


def test_demo_picture(tmp_path):
    from PIL import Image

    case = scan(tmp_path, image=noise(), reference=box((4, 10), (10, 18), (12, 22)))
    cases = [{**case, "case": name} for name in "abcd"]
    table = pd.DataFrame([row(name, dsc=i / 10) for i, name in enumerate("abcd")])
    for name in ("one.png", "two.png"):
        demo_picture(tmp_path / name, table, cases, {"tumour": (1,)})
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    wide = Image.open(tmp_path / "one.png").size
    demo_picture(tmp_path / "one.png", table[:1], cases, {"tumour": (1,)})
    narrow = Image.open(tmp_path / "one.png").size
    assert wide[0] == pytest.approx(3 * narrow[0], abs=3)
    assert wide[1] == narrow[1]
    with pytest.raises(ContextsegError, match="no case has a score"):
        demo_picture(tmp_path / "none.png", pd.DataFrame(), cases, {"tumour": (1,)})


LOG = [
    {"step": 10, "part": "train", "seconds": 5.0, "lr": 0.01, "seg": 1.0, "context": 0.5},
    {"step": 20, "part": "train", "seconds": 9.0, "lr": 0.005, "seg": 0.8, "context": 0.4},
    {"step": 20, "part": "check", "seconds": 95.0, "seg": 0.9, "context": 0.5, "dice": 0.3},
]


# --- charts ---------------------------------------------------------------------------------------


def test_training_charts():
    charts = training_charts(LOG)
    assert list(charts) == ["Loss", "Loss terms, training", "Dice on patches", "Learning rate"]
    assert all(image.startswith(b"<?xml") and b"<svg" in image for image in charts.values())
    steps, sums = _series(LOG, "train", ["seg", "context"])
    assert steps.tolist() == [10, 20]
    assert np.allclose(sums, [1.5, 1.2])
    assert list(training_charts([{**LOG[0], "part": "check"}])) == ["Loss"]


@pytest.mark.parametrize("number", [math.nan, math.inf, 1e308, 10**400, "1e308"])
def test_numbers_that_no_axis_can_hold_are_not_drawn(number):
    assert list(training_charts([{**LOG[0], "lr": number}, *LOG[1:]]))
    assert not training_charts([{**LOG[0], "step": number}])


def test_running_mean():
    y = np.random.default_rng(0).normal(size=50)
    means = _running_mean(y, 3)
    assert np.allclose(means[3:-3], np.convolve(y, np.ones(7) / 7, "valid"))
    assert np.isclose(means[0], y[:4].mean())
    assert np.isclose(means[-1], y[-4:].mean())


def test_spread_charts_of_what_is_there():
    rows = [row(f"{i}", "liver", dsc=i / 10, hd95_mm=math.inf if i == 3 else 2.0) for i in range(8)]
    rows += [row("0", "spleen", dsc=0.0, status="missed", hd95_mm=400.0)]
    charts = spread_charts(tidy(pd.DataFrame(rows)))
    assert list(charts) == ["Dice of each case, by class", "HD95, mm of each case, by class"]
    assert spread_charts(tidy(pd.DataFrame())) == {}


def test_no_label_of_a_figure_is_a_formula() -> None:
    """Names are shown as they are (`charts.plain_text`), so a formula would be, too."""
    folder = Path(contextseg.__file__).parent
    for path in [*folder.glob("reports/*.py"), *folder.glob("studies/**/*.py")]:
        assert not re.search(r"\$[_^]", path.read_text(encoding="utf-8")), path
