"""Label maps of TotalSegmentator (--ml): names from their header, or from a published class map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import contextseg as cs
from contextseg.data.layouts import open_dataset
from contextseg.data.masks import read_masks, structures
from contextseg.errors import ContextsegError
from contextseg.interop.names import known_segments, label_table
from contextseg.interop.reading import segments_of
from contextseg.interop.totalsegmentator import CLASS_MAPS, class_map, read_named_nifti
from contextseg.methods.split import _grouped
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.volume import read, read_labels

TORSO = Path(__file__).parents[2] / "shared" / "data" / "torso"
SHAPE = (14, 12, 10)
NAMES = {1: "spleen", 2: "kidney_right", 3: "kidney_left", 5: "liver", 52: "aorta"}
HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>  <Date><![CDATA[2013]]></Date>   '
    '<VolumeInformation Index="0">   <LabelTable>\n'
)
TAIL = (
    "\n  </LabelTable>  <StudyMetaDataLinkSet>  </StudyMetaDataLinkSet>  <VolumeType>"
    "<![CDATA[Label]]></VolumeType>   </VolumeInformation></CaretExtension>\n              "
)


def extension(names: Mapping[int, str]) -> bytes:
    """The header extension that TotalSegmentator writes."""
    labels = (
        f'<Label Key="{value}" Red="1.0" Green="0.5" Blue="0.0" ><![CDATA[{name}]]></Label>'
        for value, name in names.items()
    )
    return (HEAD + "\n".join(labels) + TAIL).encode()


def write(path: Path, array: np.ndarray, content: bytes = b"", kind=nib.Nifti1Image) -> Path:
    """A NIfTI file with an extension, as nibabel writes it."""
    image = kind(array, np.diag([2.0, 2, 3, 1]))
    if content:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, content))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def organs() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 2:8, 2:8] = 5
    label[8:12, 2:5, 2:8] = 2
    label[8:12, 7:10, 2:8] = 3
    return label


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_the_names_of_a_header_are_read(tmp_path: Path, ending: str, kind) -> None:
    path = write(tmp_path / f"case{ending}", organs(), extension(NAMES), kind)
    segments = read_named_nifti(path)
    assert {segment.value: segment.name for segment in segments} == NAMES
    assert segments[0].colour == (1.0, 0.5, 0.0)
    assert segments_of(path) == segments == known_segments(path)
    assert label_table(path) == {name: value for value, name in NAMES.items()}
    assert sorted(np.unique(read_labels(path).array)) == [0, 2, 3, 5]


def test_other_files_name_nothing(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.nii.gz", organs())
    other = write(tmp_path / "other.nii.gz", organs(), b"a note of another program")
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(plain.read_bytes()[:30])
    for path in (plain, other, broken, tmp_path / "missing.nii.gz", tmp_path):
        assert read_named_nifti(path) == ()
    assert segments_of(plain) is None


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    cut = write(tmp_path / "cut.nii.gz", organs(), extension(NAMES)[:300])
    with pytest.raises(ContextsegError, match="cannot be read"):
        read_named_nifti(cut)
    text = extension(NAMES).replace(b'Key="2"', b'Key="1"')
    double = write(tmp_path / "double.nii.gz", organs(), text)
    with pytest.raises(ContextsegError, match="two structures have the label value 1"):
        read_named_nifti(double)


def test_masks_have_the_names_of_their_header(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", organs(), extension(NAMES))
    spleen = np.where(organs() == 5, 1, 0).astype(np.uint8)
    write(tmp_path / "b.nii.gz", spleen, extension(NAMES))
    assert structures(tmp_path, ["a", "b"]) == ("spleen", "kidney_right", "kidney_left", "liver")
    scan = read(write(tmp_path / "scans" / "a.nii.gz", organs().astype(np.float32)))
    array, names = read_masks(tmp_path, "a", scan, ("liver", "kidney_left"))
    assert names == ("liver", "kidney_left")
    assert (array == 1).sum() == (organs() == 5).sum()
    assert (array == 2).sum() == (organs() == 3).sum()


def test_a_published_class_map_names_the_values_that_lost_their_header(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", organs())
    table = tmp_path / "labels.json"
    table.write_text(json.dumps({"labels": "TotalSegmentator total"}), encoding="utf-8")
    names = structures(tmp_path, ["a"])
    assert len(names) == 117
    assert (names[4], names[-1]) == ("liver", "costal_cartilages")
    table.write_text(json.dumps({"labels": "TotalSegmentator totl"}), encoding="utf-8")
    with pytest.raises(ContextsegError, match="did you mean TotalSegmentator total"):
        structures(tmp_path, ["a"])


@pytest.mark.parametrize(
    ("name", "number", "some"),
    [
        ("TotalSegmentator total", 117, {"aorta": 52, "vertebrae_C1": 50, "rib_right_12": 115}),
        (
            "TotalSegmentator total_v1",
            104,
            {"aorta": 7, "vertebrae_L5": 18, "urinary_bladder": 104},
        ),
        ("TotalSegmentator total_mr", 50, {"lung_right": 11, "iliopsoas_right": 49, "brain": 50}),
    ],
)
def test_the_published_class_maps(name: str, number: int, some: Mapping[str, int]) -> None:
    assert len(set(CLASS_MAPS[name])) == len(CLASS_MAPS[name]) == number
    assert some.items() <= class_map(name, "").items()


@pytest.mark.skipif(not TORSO.is_dir(), reason="the torso is not here")
@pytest.mark.parametrize(
    ("file", "name"),
    [("labels_v1.json", "TotalSegmentator total_v1"), ("labels_v2.json", "TotalSegmentator total")],
)
def test_a_real_label_map_has_the_names_of_its_class_map(file: str, name: str) -> None:
    known = json.loads((TORSO / file).read_text(encoding="utf-8"))
    table = class_map(name, file)
    assert {table[entry["name"]] for entry in known.values()} == set(map(int, known))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Scans and lesions, and TotalSegmentator's organs of each scan."""
    rng = np.random.default_rng(0)
    for case in ("a", "b", "c"):
        image = (organs() * 30 + rng.normal(0, 9, SHAPE)).astype(np.float32)
        lesion = np.zeros(SHAPE, np.uint8)
        lesion[3:5, 3:5, 3:6] = 1
        write(tmp_path / "data" / "images" / f"{case}.nii.gz", image)
        write(tmp_path / "data" / "labels" / f"{case}.nii.gz", lesion)
        write(tmp_path / "organs" / f"{case}.nii.gz", organs(), extension(NAMES))
    return tmp_path


def test_organs_are_context_classes(data: Path) -> None:
    """Left and right of an organ are one class of context."""
    words = ["context=predicted", f"masks={data / 'organs'}", "steps=1", "base_width=4"]
    words += ["batch_size=2", "patch_vox=8,8,8", "max_levels=2", "device=cpu"]
    run = Run(data / "run", Settings(str(data / "data"), "context").set(words))
    run.check()
    run.make_plan()
    run.preprocess()
    method = run.fit()
    names = json.loads(
        (run.stage_folder("structures-1") / "structures.json").read_text(encoding="utf-8")
    )
    assert names == ["kidney_right", "kidney_left", "liver"]
    assert method.context_classes == 1 + max(_grouped(names)) == 3


def test_label_maps_are_labels_to_pretrain_on(data: Path) -> None:
    (data / "organs").rename(data / "data" / "labels_organs")
    folder = data / "pretraining"
    folder.mkdir()
    (data / "data" / "images").rename(folder / "images")
    (data / "data" / "labels_organs").rename(folder / "labels")
    opened = open_dataset(folder)
    assert opened.classes == ("background", "kidney_right", "kidney_left", "liver")
    assert opened.values == (0, 2, 3, 5)
    assert not [f for f in cs.check(folder, verbose=False) if f.level == "error"]
