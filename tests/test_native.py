"""Native slices: a 2-D network sees each slice as it is, only turned."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from contextseg.data.phantom import patient
from contextseg.data.plan import Facts, Plan, make_plan
from contextseg.data.prepare import prepare, undo
from contextseg.disk import write_json
from contextseg.errors import ContextsegError
from contextseg.pipeline import open_predictor, train_run
from contextseg.runs import Run
from contextseg.settings import PredictionSettings, Settings
from contextseg.twostage.reference import SliceReference
from contextseg.volume import Volume, write

torch.set_num_threads(1)


def planned(**given: object) -> Plan:
    facts = [
        Facts("a", (20, 20, 18), (2.0, 1.0, 1.0), "SAR", (), (20, 24, 30)),
        Facts("b", (20, 22, 18), (2.0, 0.7, 0.7), "SAR", (), (24, 28, 26)),
    ]
    regions = {"ball": (1,)}
    return make_plan("set", ("background", "ball"), (0, 1), regions, ("MR",), facts, **given)  # type: ignore[arg-type]


def scan(shape: tuple[int, int, int], mm: tuple[float, float, float]) -> Volume:
    image, _ = patient(3, shape)
    return Volume(image[None], np.diag([*mm, 1.0])[[2, 1, 0, 3]])


def test_a_patch_is_the_largest_slice_of_any_scan() -> None:
    plan = planned(dims=2, native=True)
    assert plan.native
    assert plan.patch_vox == (28, 30)
    assert planned(dims=2, native=True, patch_vox=(16, 16)).patch_vox == (16, 16)
    assert Plan.from_json(asdict(plan)) == plan


def test_it_is_for_2d_networks_and_has_no_spacing() -> None:
    with pytest.raises(ContextsegError, match="dims=2"):
        planned(dims=3, native=True)
    with pytest.raises(ContextsegError, match="leave one of the two out"):
        planned(dims=2, native=True, spacing_mm=(1, 1, 1))
    with pytest.raises(ContextsegError, match="native is for 2-D networks"):
        Plan.from_json(asdict(replace(planned(dims=3), native=True)))


def test_a_scan_is_turned_and_nothing_else() -> None:
    plan = replace(planned(dims=2, native=True), orientation="SAR")
    own = scan((12, 20, 26), (3.0, 0.6, 0.8)).oriented("LIP")
    image, _, body, record = prepare(own, plan)
    turned = own.oriented("SAR")
    assert np.array_equal(image, turned.array)
    assert 0 < body.sum() < body.size
    assert record.own_mm == pytest.approx(turned.spacing_mm)
    back = undo(image[0].astype(np.int16), record)
    assert np.array_equal(back.array, own.array[0].astype(np.int16))
    cropped = prepare(own, replace(plan, native=False))[0]
    assert cropped.shape != image.shape


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    for i, (shape, mm) in enumerate((((8, 24, 20), 1.0), ((10, 20, 28), 0.7), ((9, 22, 22), 0.9))):
        image, label = patient(i, shape)
        affine = np.diag([2.0, mm, mm, 1.0])[[2, 1, 0, 3]]
        write(folder / "data" / "imagesTr" / f"c{i}_0000.nii.gz", Volume(image[None], affine))
        label_file = folder / "data" / "labelsTr" / f"c{i}.nii.gz"
        write(label_file, Volume(label.astype(np.uint8), affine))
    table = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "ball": 1}}
    write_json(folder / "data" / "dataset.json", {**table, "file_ending": ".nii.gz"})
    words = ["dims=2", "native=true", "steps=1", "base_width=4", "batch_size=2"]
    train_run(Run(folder / "run", Settings(str(folder / "data")).set(words)))
    return folder


def test_slices_of_any_size_are_trained_on_and_predicted(trained: Path) -> None:
    run = Run.open(trained / "run")
    assert run.plan.patch_vox == (24, 28)
    for case in run.cached(run.split[0]):
        assert case.image.shape[1:] == case.record.shape == case.record.grid
    predictor = replace(
        open_predictor([trained / "run"]), settings=PredictionSettings(mirror=False, step=1.0)
    )
    own = scan((7, 30, 33), (3.0, 1.2, 1.1))  # larger than any in training
    found = predictor.predict(own)
    assert found.label.shape == own.shape
    few = SliceReference(own, predictor.members[0], predictor.settings).predict([1, 4])
    assert np.array_equal(few.label, found.label.array[[1, 4]])
