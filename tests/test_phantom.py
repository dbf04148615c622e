"""Synthetic patients: what they promise is what other tests rest on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contextseg.data.check import check
from contextseg.data.layouts import open_dataset
from contextseg.data.phantom import patient, write_dataset
from contextseg.volume import read, read_labels


@pytest.mark.parametrize("shape", [(32, 32), (16, 16), (16, 16, 16), (20, 24, 24)])
def test_every_patient_has_every_organ(shape: tuple[int, ...]) -> None:
    for seed in range(60):
        image, label = patient(seed, shape, classes=3)
        assert (image.shape, image.dtype, label.shape, label.dtype) == (
            shape,
            np.float32,
            shape,
            np.int16,
        )
        assert sorted(np.unique(label)) == [0, 1, 2]
        for k in (1, 2):
            assert 5 <= (label == k).sum() < 0.2 * label.size


def test_intensities_are_those_that_the_docstring_names() -> None:
    air, body, bright, dark = [], [], [], []
    for seed in range(20):
        image, label = patient(seed, (24, 24, 24), classes=3)
        middle = np.zeros(label.shape, bool)
        middle[8:16, 8:16, 8:16] = True
        air.append(image[0, 0, 0])
        body.append(image[middle & (label == 0)].mean())
        bright.append(image[label == 1].mean())
        dark.append(image[label == 2].mean())
    np.testing.assert_allclose(
        [np.mean(v) for v in (air, body, bright, dark)], [0, 1, 2.5, -0.5], atol=0.25
    )
    np.testing.assert_allclose(np.mean(body), 1, atol=0.02)


def test_a_seed_is_a_patient() -> None:
    for classes in (2, 3):
        one, two, other = (patient(seed, classes=classes, look_alikes=2) for seed in (5, 5, 6))
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
        assert (one[1] != other[1]).any()


def test_look_alikes_are_as_bright_as_the_organ_and_not_labelled() -> None:
    more = 0
    for seed in range(10):
        plain, label = patient(seed)
        image, same = patient(seed, look_alikes=3)
        np.testing.assert_array_equal(label, same)
        rods, without = (((x > 2) & (label == 0)).sum() for x in (image, plain))
        assert without < 20  # noise of three deviations and more
        more += rods > (label == 1).sum() / 4
        assert (image[label == 1].mean(), image[label == 0][:10].mean()) == pytest.approx(
            (2.5, 0), abs=0.4
        )
    assert more >= 8
    offset = np.indices((24, 24, 24)).reshape(3, -1) - 11.5
    air = (np.linalg.norm(offset, axis=0) > 11.5).reshape(
        24, 24, 24
    )  # the body's radius is 0.47 of 24
    for seed in range(10):
        image, label = patient(seed, classes=3, look_alikes=9)
        assert (
            max(image[label == 2].max(), image[air].max()) < 1.7
        )  # no rod runs through an organ, or sticks out


def test_a_written_data_set_is_faultless_and_what_was_asked_for(tmp_path: Path) -> None:
    folder = write_dataset(
        tmp_path / "set", labelled=2, unlabelled=1, test=1, shape=(10, 18, 20), classes=3
    )
    assert check(folder) == []
    data = open_dataset(folder)
    assert (data.classes, data.values, data.channels) == (
        ("background", "bright", "dark"),
        (0, 1, 2),
        ("MR",),
    )
    assert [case.label is not None for case in (*data.train, *data.test)] == [
        True,
        True,
        False,
        True,
    ]
    for i, case in enumerate((*data.train, *data.test)):
        scan, (image, label) = read(*case.images), patient(i, (10, 18, 20), 3)
        assert (scan.orientation, scan.spacing_mm) == ("SAR", (2, 1, 1))
        np.testing.assert_array_equal(scan.array[0], image * 100)
        if case.label:
            np.testing.assert_array_equal(read_labels(case.label).array, label)
            assert read_labels(case.label).same_grid(scan)
