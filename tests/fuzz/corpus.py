"""The small real files that are damaged: a folder for each kind, made once."""

from __future__ import annotations

import bz2
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

SHAPE = (5, 7, 6)
AFFINE = np.array([[0.0, 0, 1, -10], [0, 1, 0, 5], [2, 0, 0, 0], [0, 0, 0, 1]])
TINY = ["steps=1", "patch_vox=8,8,8", "batch_size=2", "base_width=2", "max_levels=2"]
TINY += ["device=cpu", "prediction.mirror=false", "save_every=1", "log_every=1"]


def make(folder: Path) -> Path:
    """Every kind below a folder, which is made."""
    import torch

    torch.set_num_threads(1)
    for kind, build in KINDS.items():
        (folder / kind).mkdir(parents=True)
        build(folder / kind)
    return folder


def _scan(seed: int = 0) -> Any:
    from contextseg.volume import Volume

    array = np.random.default_rng(seed).integers(-50, 300, (1, *SHAPE)).astype(np.int16)
    return Volume(array, AFFINE)


def _label() -> Any:
    label = np.zeros(SHAPE, np.uint8)
    label[1:4, 2:5, 2:4] = 1
    label[3, 5, 1:4] = 2
    return _scan().with_array(label)


def _packed(folder: Path) -> None:
    _scan().save(folder / "scan.nii.gz")
    _label().save(folder / "label.nii.gz")


def _nifti(folder: Path) -> None:
    import nibabel as nib

    _scan().save(folder / "scan.nii")
    array = _scan().array[0].T
    nib.save(nib.Nifti2Image(array, np.diag([1.0, 1, 2, 1])), folder / "second.nii")
    scaled = nib.Nifti1Image(array.astype(">i2"), np.diag([1.0, 1, 2, 1]))
    scaled.header.set_slope_inter(0.5, 3)
    nib.save(scaled, folder / "scaled.nii")


def _pairs(folder: Path) -> None:
    import nibabel as nib

    array = _scan().array[0].T
    nib.save(nib.Nifti1Pair(array, np.diag([1.0, 1, 2, 1])), folder / "pair.hdr")
    nib.save(nib.Spm2AnalyzeImage(array, np.diag([1.0, 1, 2, 1])), folder / "old.hdr")


def _mgh(folder: Path) -> None:
    import nibabel as nib

    image = nib.MGHImage(_scan().array[0].T.astype(np.int32), np.diag([1.0, 1, 2, 1]))
    nib.save(image, folder / "scan.mgh")
    nib.save(image, folder / "scan.mgz")


def _nrrd(folder: Path) -> None:
    import SimpleITK as sitk

    _scan().save(folder / "scan.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(_scan().array[0]), str(folder / "alone.nhdr"))


def _seg_nrrd(folder: Path) -> None:
    from contextseg.interop.segments import Segment
    from contextseg.interop.slicer import write_segmentation

    segments = [Segment("liver", 1, (1.0, 0.0, 0.0)), Segment("lesion", 2)]
    write_segmentation(folder / "label.seg.nrrd", _label(), segments)


def _meta(folder: Path) -> None:
    import SimpleITK as sitk

    _scan().save(folder / "scan.mha")
    sitk.WriteImage(sitk.GetImageFromArray(_scan().array[0]), str(folder / "alone.mhd"))


def _pictures(folder: Path) -> None:
    from PIL import Image

    grey = np.random.default_rng(0).integers(0, 255, (9, 8)).astype(np.uint8)
    for name in ("a.png", "b.bmp", "c.jpg", "d.tif"):
        Image.fromarray(grey).save(folder / name)
    colours = Image.fromarray(np.stack([grey] * 3, -1))
    colours.quantize(8).save(folder / "e.png")
    Image.fromarray(np.stack([grey, grey], -1), "LA").save(folder / "f.png")
    pages = [Image.fromarray(grey + k) for k in range(3)]
    pages[0].save(
        folder / "g.tif", save_all=True, append_images=pages[1:], compression="tiff_deflate"
    )
    (folder / "g.json").write_text('{"spacing": [3, 1, 1]}', encoding="utf-8")


def _dicom(folder: Path) -> None:
    import test_dicom

    test_dicom.write_slices(folder / "series", test_dicom.slices(test_dicom.numbers((4, 6, 5))))


def _enhanced(folder: Path) -> None:
    import test_dicom

    array = test_dicom.numbers()
    image = test_dicom.enhanced(array[:, :6, :5].copy(), test_dicom.PLACES)
    test_dicom.store(folder / "enhanced.dcm", image)
    packed = test_dicom.slices(test_dicom.numbers((1, 6, 5)))[0]
    packed.compress(test_dicom.RLELossless)
    test_dicom.store(folder / "packed.dcm", packed)


def _dicom_segments(folder: Path) -> None:
    import test_interop_dicom as segments
    import test_interop_rtstruct as contours

    slices = segments.series(folder / "series")
    segments.segmentation(folder / "label.dcm", slices, segments.organs())
    contours.scan().save(folder / "scan.nii")
    box = contours.box(1, 2.0, 9.0, 3.0, 9.0)
    contours.structures(folder / "contours.dcm", (1, "liver", [box]), (2, "lesion", [box + 0.0]))


def _nnunet_data(folder: Path) -> None:
    from contextseg.data import phantom

    phantom.write_dataset(
        folder / "data", labelled=3, unlabelled=1, test=1, shape=(10, 12, 12), classes=3
    )
    names = [f"phantom_{i:03d}" for i in range(4)]
    _write(folder / "data" / "patients.json", dict(zip(names, "abcd")))
    splits = [{"train": names[:2], "val": names[2:3]}]
    _write(folder / "data" / "splits_final.json", splits)
    _write(folder / "data" / "labelsTr" / "annotated.json", {names[0]: ["bright"]})
    facts = {names[1]: {"annotated": ["bright", "dark"], "split": "train", "patient": "b"}}
    _write(folder / "data" / "cases.json", {"cases": facts})


def _decathlon(folder: Path) -> None:
    table = {
        "name": "old",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "lesion"},
        "numTraining": 2,
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"
        ],
        "test": ["./imagesTs/c.nii.gz"],
    }
    for n, name in enumerate("abc"):
        part = "Ts" if name == "c" else "Tr"
        _scan(n).save(folder / "data" / f"images{part}" / f"{name}.nii.gz")
        if part == "Tr":
            _label().save(folder / "data" / "labelsTr" / f"{name}.nii.gz")
    _write(folder / "data" / "dataset.json", table)


def _plain(folder: Path) -> None:
    for n, name in enumerate("ab"):
        _scan(n).save(folder / "data" / "images" / f"{name}.nrrd")
        _label().save(folder / "data" / "labels" / f"{name}.nii")
    rows = '0 0 0 0 0 0 0 "Clear"\n1 255 0 0 1 1 1 "liver"\n2 0 9 0 1 1 1 "lesion"\n'
    (folder / "data" / "labels" / "labels.label.txt").write_text(rows, encoding="utf-8")
    (folder / "data" / "labels" / "labels.txt").write_text(rows, encoding="utf-8")


def _run(folder: Path) -> None:
    from contextseg.data import phantom
    from contextseg.pipeline import run_pipeline
    from contextseg.runs import Run
    from contextseg.settings import Settings

    data = phantom.write_dataset(folder / "data", labelled=5, test=1, shape=(10, 12, 12), classes=3)
    asked = Settings(str(data), fold=0).set([*TINY, "confidence=true"])
    run_pipeline(Run(folder / "run", asked))


def _model(folder: Path) -> None:
    import torch

    import contextseg as cs

    run = folder.parent / "run" / "run"
    cs.export(run, folder / "model.zip", licence="CC BY 4.0")
    weights = next(run.glob("train-*")) / "model.pt"
    shutil.copy(weights, folder / "weights.pt")
    tensors = torch.load(weights, weights_only=True)
    np.savez(folder / "weights.npz", **{k: v.numpy() for k, v in tensors.items()})
    _scan_like_run(run, folder)


def _scan_like_run(run: Path, folder: Path) -> None:
    scan = next((run.parent / "data" / "imagesTs").glob("*.nii.gz"))
    shutil.copy(scan, folder / "scan.nii.gz")


def _nnunet_model(folder: Path) -> None:
    import test_nnunet

    test_nnunet.write_model(folder / "model")


def _completion(folder: Path) -> None:
    from contextseg.propagation.pretrained import WEIGHTS

    shutil.copy(WEIGHTS, folder / "network.npz")


def _completion_training(folder: Path) -> None:
    """The file and the checkpoint of a training of the packaged network."""
    from contextseg.propagation.network.prepare import Example, pack

    image = np.random.default_rng(0).integers(0, 60, (16, 20, 20)).astype(np.uint8)
    label = np.zeros_like(image)
    label[4:12, 5:15, 5:15] = 1
    cases = [("a", image, False), ("b", image, True), ("c", None, False)]
    volumes = [
        Example(name, "torso", pixels, label, [1], (2.0, 1.0, 1.0), kept)
        for name, pixels, kept in cases
    ]
    pack(iter(volumes), folder / "data.npz")
    from fuzz.readers import completion_training

    completion_training(folder, folder / "data.npz").save()


def _completion_data(folder: Path) -> None:
    """The four data sets that the packaged network is trained on, a case each."""
    scan, label = _scan(), _label()
    _write(
        folder / "headneck" / "cases.json",
        {
            "labels": {"background": 0, "parotid": 1, "mandible": 2},
            "cases": {"a": {"annotated": ["parotid", "mandible"], "split": "train"}},
        },
    )
    _write(folder / "sarcoma" / "split.json", {"train": ["a"]})
    rows = {str(n): {"name": f"organ {n}", "voxels": 200} for n in range(3)}
    _write(folder / "torso" / "labels_v2.json", rows)
    _write(folder / "headmaps" / "labels.json", {"values": {"0": 0, "1": 2, "2": 17}})
    for place in ("headneck/images/a", "sarcoma/imagesTr/a_0000", "torso/torso_ct"):
        scan.save(folder / f"{place}.nii.gz")
    drawn = ("headneck/labels/a", "sarcoma/labelsTr/a", "torso/torso_seg_v2fast_117classes")
    for place in (*drawn, "headmaps/head_01"):
        label.save(folder / f"{place}.nii.gz")


def _predictions(folder: Path) -> None:
    """Predictions with their tables, and references."""
    run = folder.parent / "run" / "run"
    for path in (run / "predict").iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    (folder / "references").mkdir()
    for path in (run.parent / "data" / "labelsTs").glob("*.nii.gz"):
        shutil.copy(path, folder / "references" / path.name)
    for name in ("metrics.csv", "calibration.csv", "summary.json"):
        found = run / "evaluate" / name
        if found.exists():
            shutil.copy(found, folder / name)
    shutil.copy(run.parent / "data" / "dataset.json", folder / "dataset.json")


def _project(folder: Path) -> None:
    import contextseg as cs

    for n, name in enumerate("abcd"):
        _scan(n).save(folder / "scans" / f"{name}.nii.gz")
    project = cs.project(folder / "work", folder / "scans", ["liver"], test=1, verbose=False)
    for name in [name for name in "abcd" if name not in project.locked][:2]:
        drawn = np.zeros(SHAPE, np.uint8)
        drawn[[1, 3]] = _label().array[[1, 3]] == 1
        _scan().with_array(drawn).save(folder / "work" / "drawn" / f"{name}.nii.gz")
    project.fill()
    project.accept([name for name in "abcd" if name not in project.locked][:1])


def _annotator(folder: Path) -> None:
    from contextseg.annotator.project import open_project
    from contextseg.annotator.session import AnnotationSession

    for n, name in enumerate("ab"):
        _scan(n).save(folder / "scans" / f"{name}.nii.gz")
    session = AnnotationSession(open_project(folder / "scans", folder / "work", ["liver"]))
    session.describe(0)
    for k in (1, 3):
        pixels, revision = session.label(0, "axial", k)
        drawn = np.zeros(len(pixels) // 2, np.uint8)
        drawn[: len(drawn) // 2] = 1
        session.put(0, "axial", k, drawn.tobytes(), revision, tool="brush", seconds=2.0)
    session.fill(0)
    session.finish(0)
    session.close()


def _texts(folder: Path) -> None:
    """What is typed: assignments of `--set`, tolerances, methods of a comparison."""
    words = [
        "steps=100", "spacing_mm=2,1,1", "lr=0.01", "prediction.mirror=false", "net=resenc",
        "batch_size=2", "patch_vox=16,16,16", "memory_gb=8", "confidence=true", "fold=0",
    ]  # fmt: skip
    (folder / "set.txt").write_text("\n".join(words), encoding="utf-8")
    (folder / "tolerance.txt").write_text("liver=1,lesion=2.5", encoding="utf-8")
    (folder / "methods.txt").write_text("wide=supervised:base_width=64", encoding="utf-8")


def _requests(folder: Path) -> None:
    shutil.copytree(folder.parent / "annotator" / "scans", folder / "scans")
    asked = [
        ["GET", "/api/cases", {}, ""],
        ["POST", "/api/cases/0/open", {}, ""],
        ["GET", "/api/cases/0/slice/axial/1?c=0", {}, ""],
        ["GET", "/api/cases/0/label/axial/1", {}, ""],
        [
            "PUT",
            "/api/cases/0/label/axial/1?tool=brush&seconds=2",
            {"If-Match": '"0"'},
            "\x01" * 42,
        ],
        ["POST", "/api/classes", {"Content-Type": "application/json"}, '{"name": "vessel"}'],
        ["POST", "/api/cases/0/fill", {}, ""],
        ["POST", "/api/cases/0/finish", {}, ""],
        ["GET", "/api/cases/0/segmentation", {}, ""],
        ["DELETE", "/api/jobs/1", {}, ""],
        ["GET", "/info/", {}, ""],
        ["POST", "/infer/contextseg?image=a", {"Content-Type": "application/json"}, "{}"],
        ["PUT", "/datastore/label?image=a", {"Content-Type": "multipart/form-data"}, "x"],
    ]
    _write(folder / "requests.json", asked)


def _packed_otherwise(folder: Path) -> None:
    """What is no scan, by its name a scan."""
    (folder / "a.nii").write_bytes(bz2.compress(b"no scan"))
    (folder / "b.nii.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (folder / "c.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 40)
    (folder / "d.raw").write_bytes(b"\0" * 400)
    (folder / "e.vtk").write_bytes(b"# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\n")


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


KINDS: dict[str, Callable[[Path], None]] = {
    "packed": _packed,
    "nifti": _nifti,
    "pairs": _pairs,
    "mgh": _mgh,
    "nrrd": _nrrd,
    "seg_nrrd": _seg_nrrd,
    "meta": _meta,
    "pictures": _pictures,
    "dicom": _dicom,
    "enhanced": _enhanced,
    "dicom_segments": _dicom_segments,
    "others": _packed_otherwise,
    "nnunet_data": _nnunet_data,
    "decathlon": _decathlon,
    "plain": _plain,
    "run": _run,
    "model": _model,
    "nnunet_model": _nnunet_model,
    "completion": _completion,
    "completion_training": _completion_training,
    "completion_data": _completion_data,
    "predictions": _predictions,
    "project": _project,
    "annotator": _annotator,
    "requests": _requests,
    "texts": _texts,
}
