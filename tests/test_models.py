"""Models travel: without their training data, as one file, and to tools that know nothing of us."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import contextseg as cs
from contextseg import cli
from contextseg.data import phantom
from contextseg.data.components import keep_largest, keep_largest_of
from contextseg.data.plan import PLACE, Channel, Plan
from contextseg.data.prepare import prepare
from contextseg.disk import read_json
from contextseg.errors import ContextsegError
from contextseg.evaluation.largest import save_largest
from contextseg.methods import CoLab, Supervised
from contextseg.methods.presence import head_of
from contextseg.models import export_archive, export_network, open_archive
from contextseg.pipeline import open_predictor, open_propagation_model, run_pipeline, train_run
from contextseg.predict import sliding_window
from contextseg.predictor import Member, Predictor, sliding_window_arguments
from contextseg.predictor.predictor import _networks
from contextseg.runs import Run
from contextseg.settings import PredictionSettings, Settings
from contextseg.volume import Volume, read

torch.set_num_threads(1)
TINY = ["steps=1", "patch_vox=16,16,16", "batch_size=2", "base_width=4", "max_levels=2"]
TINY += ["device=cpu", "prediction.mirror=false"]
FLAT = ["dims=2", "patch_vox=16,16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "data"
    phantom.write_dataset(folder, labelled=6, unlabelled=1, test=1, classes=3)
    patients = {f"phantom_{i:03d}": f"Mustermann{i}" for i in range(8)}
    (folder / "patients.json").write_text(json.dumps(patients), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    run_pipeline(Run(folder, Settings(str(data), fold=0).set(TINY)))
    return folder


@pytest.fixture(scope="module")
def archive(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cs.export(finished, tmp_path_factory.mktemp("zip") / "model.zip", licence="CC BY 4.0")


def scan_of(data: Path) -> Path:
    return next((data / "imagesTs").glob("*.nii.gz"))


def contents(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as file:
        return {name: file.read(name) for name in file.namelist()}


# --- every method, without its training data, from its folder and from its file -------------------


@pytest.mark.parametrize(
    ("method", "more", "roi"),
    [
        ("supervised", ["presence_weight=0.1"], ()),
        ("colab", [], ()),
        ("context", ["context=kmeans"], ()),
        ("context", ["context=anatomy"], ("bright",)),
        ("cmu", FLAT, ()),
        ("cmu-pretrain", FLAT, ()),
        ("cps", [], ()),
        ("pseudo", ["models=2", "threshold=0.01"], ()),
        ("stcn", [], ()),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list | tuple) else value,
)
def test_a_model_travels(
    data: Path, tmp_path: Path, method: str, more: list[str], roi: tuple[str, ...]
) -> None:
    """It loads where the training data is not, and as one file in which there is no patient."""
    here = tmp_path / "data"
    shutil.copytree(data, here)
    settings = Settings(str(here), method, fold=0, roi=roi).set([*TINY, *more])
    trained = train_run(Run(tmp_path / "run", settings))
    (here / "imagesTs").rename(tmp_path / "scans")
    shutil.rmtree(here)

    archive = cs.export(tmp_path / "run", tmp_path / "model.zip")
    for name, content in contents(archive).items():
        for word in ("phantom_0", "Mustermann", str(tmp_path), "imagesTr", "labelsTr"):
            assert word.encode() not in content, (name, word)
    [member] = open_archive(archive, "cpu").members
    assert member.plan == Run.open(tmp_path / "run").plan
    assert not member.method.training
    state = member.method.state_dict()
    for name, x in trained.state_dict().items():
        if name in trained.private_state:
            assert not state[name].any()
        else:
            assert torch.equal(state[name], x)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    kept = {name for name, _ in trained.named_buffers() if not name.endswith(statistics)}
    assert kept <= set(trained.private_state), "may hold voxels: name it in private_state"
    head = head_of(trained)
    if head is not None:
        again = head_of(member.method)
        assert again is not None
        assert (again.gate, again.seen) == (head.gate, head.seen)

    if method == "stcn":
        ours, theirs = (open_propagation_model(tmp_path / p) for p in ("run", "model.zip"))
        assert (ours.plan, ours.axes) == (theirs.plan, theirs.axes)
        return
    made = open_predictor([tmp_path / "run"]).predict_folder(tmp_path / "scans", tmp_path / "out")
    scan = next((tmp_path / "scans").iterdir())
    label = open_predictor([archive]).predict(scan).label
    assert np.array_equal(cs.read_labels(next(iter(made.values()))).array, label.array)
    # The same model by its digest: the folder of predictions takes both.
    assert open_predictor([archive]).made_by() == open_predictor([tmp_path / "run"]).made_by()


def test_what_colab_watches_is_of_a_patient(data: Path) -> None:
    """Else the test above would find nothing."""
    assert set(CoLab.private_state) == {"watched", "snapshots"}


# --- the zip file ---------------------------------------------------------------------------------


def test_the_file_says_what_it_is(archive: Path, finished: Path, tmp_path: Path) -> None:
    parts = contents(archive)
    assert list(parts) == [
        "model.json",
        "MODEL_CARD.md",
        "LICENCE.txt",
        "members/1/plan.json",
        "members/1/recipe.json",
        "members/1/weights.pt",
    ]
    assert parts["LICENCE.txt"] == b"CC BY 4.0\n"
    card = parts["MODEL_CARD.md"].decode()
    assert "# phantom: bright, dark" in card
    assert "no medical device" in card
    assert "| bright | test | 1 |" in card
    recipe = json.loads(parts["members/1/recipe.json"])
    assert recipe["settings"]["training"]["steps"] == 1
    assert recipe["cases"] == {
        "training": 5,
        "training_labelled": 4,
        "validation": 2,
        "labels_kept": None,
    }
    (tmp_path / "LICENCE").write_text("All mine\n", encoding="utf-8")
    words = {"licence": str(tmp_path / "LICENCE"), "note": "For legs."}
    same = [export_archive([Run.open(finished)], tmp_path / n, **words) for n in ("a.zip", "b.zip")]
    assert same[0].read_bytes() == same[1].read_bytes()
    parts = contents(same[0])
    assert parts["LICENCE.txt"] == b"All mine\n"
    assert "For legs." in parts["MODEL_CARD.md"].decode()
    without = contents(cs.export(finished, tmp_path / "c.zip"))
    assert b"No licence was given" in without["LICENCE.txt"]


def test_paths_stay_at_home(data: Path, finished: Path, tmp_path: Path) -> None:
    start = tmp_path / "Mustermann.pt"
    shutil.copy(finished / "train-1" / "model.pt", start)
    settings = Settings(str(data)).set([*TINY, f"weights={start}"])
    train_run(Run(tmp_path / "run", settings))
    for content in contents(cs.export(tmp_path / "run", tmp_path / "m.zip")).values():
        assert b"Mustermann" not in content
        assert str(tmp_path).encode() not in content


def test_ensembles_mix_runs_and_files(
    data: Path, finished: Path, archive: Path, tmp_path: Path
) -> None:
    train_run(Run(tmp_path / "other", Settings(str(data), fold=0, seed=1).set(TINY)))
    both = cs.export([finished, tmp_path / "other"], tmp_path / "both.zip")
    one = cs.load(both).predict(scan_of(data))
    assert len(cs.load(both).members) == 2
    for models in ((finished, tmp_path / "other"), (archive, tmp_path / "other")):
        again = cs.load(*models).predict(scan_of(data))
        assert np.array_equal(again.label.array, one.label.array)
        assert again.confidence is not None
        assert np.array_equal(again.confidence.array, one.confidence.array)  # type: ignore[union-attr]


def test_every_verb_that_takes_a_run_takes_its_file(
    data: Path, archive: Path, tmp_path: Path
) -> None:
    cs.two_stage(archive, data / "imagesTs", tmp_path / "two", every=4, verbose=False)
    assert list((tmp_path / "two").glob("*.nii.gz"))
    words = ["predict", archive, "-i", data / "imagesTs", "-o", tmp_path / "out"]
    cli.app([str(word) for word in words], standalone_mode=False)
    assert list((tmp_path / "out").glob("*.nii.gz"))


def test_the_command_line_exports(finished: Path, tmp_path: Path) -> None:
    words = ["export", finished, tmp_path / "m.zip", "--licence", "MIT"]
    cli.app([str(word) for word in words], standalone_mode=False)
    assert contents(tmp_path / "m.zip")["LICENCE.txt"] == b"MIT\n"
    for name, message in (("m.tar", "end in .zip, .onnx or .pt2"), ("m", "not the ending")):
        with pytest.raises(ContextsegError, match=message):
            cs.export(finished, tmp_path / name)
    with pytest.raises(ContextsegError, match="no run in this folder"):
        cs.export(tmp_path, tmp_path / "n.zip")


class Bomb:
    """What an attacker would pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('it ran')",)


def changed(archive: Path, out: Path, name: str, content: bytes | None) -> Path:
    parts = {**contents(archive), name: content}
    with zipfile.ZipFile(out, "w") as file:
        for part, value in parts.items():
            if value is not None:
                file.writestr(part, value)
    return out


def test_no_file_runs_code_or_ends_in_a_traceback(archive: Path, tmp_path: Path) -> None:
    model = json.loads(contents(archive)["model.json"])
    member = model["members"][0]
    torch_bomb = io.BytesIO()
    torch.save({"net": Bomb()}, torch_bomb)
    bad = {
        "members/1/weights.pt": [
            (pickle.dumps(Bomb()), "weights cannot be read"),
            (torch_bomb.getvalue(), "weights cannot be read"),
            (b"", "weights cannot be read"),
            (None, "no model that can be read"),
        ],
        "model.json": [
            (None, "holds no model"),
            (b"{}", "holds no model"),
            (b"[", "no model that can be read"),
            (json.dumps({**model, "version": 2}).encode(), "install a later contextseg"),
            (json.dumps({**model, "members": []}).encode(), "no network"),
            (json.dumps({**model, "prediction": {"windows": [1]}}).encode(), "prediction.windows"),
            (
                json.dumps({**model, "members": [{**member, "class": "system"}]}).encode(),
                "its method system is not known",
            ),
            (
                json.dumps({**model, "members": [{**member, "class": "METHODS"}]}).encode(),
                "its method METHODS is not known",
            ),
            (
                json.dumps({**model, "members": [{**member, "arguments": {"a": 1}}]}).encode(),
                "no model that can be read",
            ),
        ],
        "members/1/plan.json": [(b"{}", "not a plan")],
    }
    for name, contents_ in bad.items():
        for content, message in contents_:
            path = changed(archive, tmp_path / "bad.zip", name, content)
            with pytest.raises(ContextsegError, match=message):
                cs.load(path)
    (tmp_path / "text.zip").write_text("no zip", encoding="utf-8")
    with pytest.raises(ContextsegError, match="no model, or damaged"):
        cs.load(tmp_path / "text.zip")
    with pytest.raises(ContextsegError, match="there is no such file"):
        cs.load(tmp_path / "gone.zip")


# --- ONNX and torch programs ----------------------------------------------------------------------


def runner() -> Any:
    path = Path(__file__).parents[1] / "examples" / "run_onnx.py"
    spec = importlib.util.spec_from_file_location("run_onnx", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plan_of(**changes: Any) -> Plan:
    flat = len(changes.get("patch_vox", (16, 16, 16))) == 2
    ones, twos, threes = ([n] * (2 if flat else 3) for n in (1, 2, 3))
    plan = Plan(
        dataset="phantom",
        classes=("background", "kidney_left", "kidney_right"),
        values=(0, 7, 3),
        regions={"kidney_left": (1,), "kidney_right": (2,)},
        channels=(Channel("MR", "zscore"),),
        orientation="SAR",
        spacing_mm=(2.5, 1.2, 0.9),
        patch_vox=(16, 16, 16),
        batch_size=2,
        mirror=(True, False, True),
        swaps=((1, 2),),
        widths=(4, 8),
        strides=(tuple(ones), tuple(twos)),
        kernels=(tuple(threes), tuple(threes)),
    )
    return replace(plan, **changes)


CT = Channel("CT", "ct", -400.0, 300.0, 20.0, 90.0)
PREDICTORS: dict[str, list[Plan]] = {
    # Resampled, mirrored with left and right exchanged, thick slices, a patch longer than an axis.
    "volumes": [plan_of(spacing_mm=(4.0, 1.2, 0.9), patch_vox=(32, 16, 16))],
    # Slices from right to left, CT through a window, with the slice's place.
    "slices": [
        plan_of(
            patch_vox=(16, 16),
            orientation="RSA",
            mirror=(False, True, True),
            channels=(Channel("CT", "window", -300.0, 500.0, source=0), PLACE),
        )
    ],
    # Two members that normalise differently, as folds of CT do.
    "ensemble": [
        plan_of(spacing_mm=(2.0, 1.0, 1.0), channels=(CT,)),
        plan_of(spacing_mm=(2.0, 1.0, 1.0), channels=(replace(CT, mean=0.0, sd=50.0),)),
    ],
}


def ct_like(volume: Volume) -> Volume:
    """Air of -1000, tissue of 0 to 150: a phantom's body as CT has it."""
    return volume.with_array(volume.array * 4 - 1000)


@pytest.mark.parametrize("kind", PREDICTORS)
def test_another_tool_segments_as_we_do(kind: str, tmp_path: Path) -> None:
    """The reference runner, which imports nothing of contextseg, on every step of the way."""
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(3)
    members = [Member(Supervised(plan).eval(), plan) for plan in PREDICTORS[kind]]
    for member in members:
        for parameter in member.method.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    whole = kind == "ensemble"  # of the others the classes that validation chose
    settings = PredictionSettings(mirror=not whole, confidence=False, largest_component=whole)
    predictor = Predictor(members, settings, () if whole else ("kidney_left", "kidney_right"))
    model = export_network(predictor, tmp_path / "model.onnx", "MIT")
    image, _ = phantom.patient(5, (20, 30, 26))
    turned = np.array([[0, 0, -1.0, 9], [0, 1.1, 0, 5], [2, 0, 0, 0], [0, 0, 0, 1]])
    scan = Volume(image[None] * 100, turned)
    scan = ct_like(scan) if predictor.plan.ct else scan
    cs.write(tmp_path / "scan.nii.gz", scan)
    scan = read(tmp_path / "scan.nii.gz")

    tool = runner()
    seen: dict[str, np.ndarray] = {}
    for step in ("body_of", "normalised", "logits_of"):
        tool_step = getattr(tool, step)

        def watched(*args: Any, step: str = step, tool_step: Any = tool_step) -> Any:
            seen[step] = tool_step(*args)
            return seen[step]

        setattr(tool, step, watched)
    description = read_json(tmp_path / "model.onnx.json")
    assert description["licence"] == "MIT"
    session = ort.InferenceSession(str(model))
    nifti = nib.load(tmp_path / "scan.nii.gz")
    result = tool.segment(lambda x: session.run(None, {"image": x})[0], description, [nifti])

    raw, _, _, record = prepare(scan, predictor.plan, "scan")
    networks, ours = _networks(predictor.members, raw, record)
    window = sliding_window_arguments(members[0].method, predictor.plan, settings)
    slabs = [z for *_, z in sliding_window(networks, ours, predictor.plan.patch_vox, **window)]
    logits = torch.cat(slabs, 1).numpy()
    assert np.abs(seen["normalised"] - ours).max() < 1e-4
    assert np.abs(seen["logits_of"] - logits).max() < 1e-4 * max(1, np.abs(logits).max())
    label = predictor.predict(scan).label
    cs.write(tmp_path / "ours.nii.gz", label)
    expected = np.asanyarray(nib.load(tmp_path / "ours.nii.gz").dataobj)
    differ = np.asanyarray(result.dataobj) != expected
    assert differ.mean() < 1e-4
    assert len(np.unique(expected)) >= 2
    with_all_parts = replace(predictor, settings=PredictionSettings(mirror=not whole))
    more = replace(with_all_parts, largest_validated=()).predict(scan).label
    assert whole or (more.array != label.array).any()
    assert np.allclose(result.affine, nifti.affine)


def test_the_runner_keeps_the_largest_part_that_we_keep() -> None:
    """Of several of the same size the first of the file, which lies in another order there."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        array = rng.choice([0, 0, 0, 0, 3, 7], size=(4, 5, 6)).astype(np.uint8)
        expected = keep_largest(keep_largest_of(Volume(array, np.eye(4)), [7])[0])[0].array
        label = array.T.copy()
        runner().keep_largest(label, label == 7)
        runner().keep_largest(label, label > 0)
        assert np.array_equal(label.T, expected)


def test_what_validation_chose_is_in_every_file(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    name = next(iter(cs.load(run).classes))
    row = {"class": name, "cases": 5, "dice": 0.5, "dice_largest": 0.6, "better": 4, "worse": 1}
    save_largest([{**row, "chosen": True}], Run.open(run).stage_folder("evaluate"))
    assert Run.open(run).largest_validated == (name,)
    value = cs.load(run).classes[name]
    for file in ("model.pt2", "model.zip"):
        cs.export(run, tmp_path / file)
    assert cs.load(tmp_path / "model.zip").largest_of == (name,)
    assert read_json(tmp_path / "model.pt2.json")["largest_of"] == [value]


def test_the_runner_needs_little() -> None:
    source = (Path(__file__).parents[1] / "examples" / "run_onnx.py").read_text(encoding="utf-8")
    assert "import contextseg" not in source
    assert "from contextseg" not in source
    assert "torch" not in source


def test_a_torch_program_is_the_same_network(finished: Path, data: Path, tmp_path: Path) -> None:
    path = cs.export(finished, tmp_path / "model.pt2")
    method = cs.load(finished, device="cpu").members[0].method
    image = torch.randn(3, 1, 16, 16, 16)
    with torch.no_grad():
        expected = method.predict(image)
        made = torch.export.load(path).module()(image)
    assert torch.allclose(made, expected, atol=1e-5)
    assert read_json(tmp_path / "model.pt2.json")["file"] == "model.pt2"
    for word in (str(finished), str(Path(cs.__file__).parent), "phantom_0"):
        assert word.encode() not in path.read_bytes()


def test_what_colab_watched_is_not_in_a_program(tmp_path: Path) -> None:
    plan = plan_of()
    method = CoLab(plan).eval()
    method.watched.fill_(123.0)
    export_network(Predictor([Member(method, plan)]), tmp_path / "model.pt2")
    state = torch.export.load(tmp_path / "model.pt2").state_dict
    assert not state["methods.0.watched"].any()
    assert method.watched.any()


def test_a_licence_that_is_not_there_is_not_its_name(finished: Path, tmp_path: Path) -> None:
    for file, given in (
        ("model.zip", {"licence": "LICENCE.txt"}),
        ("model.zip", {"note": "notes.md"}),
        ("model.pt2", {"licence": "LICENCE.txt"}),
    ):
        with pytest.raises(ContextsegError, match="there is no such file of text"):
            cs.export(finished, tmp_path / file, **given)
    assert not list(tmp_path.iterdir())


def test_onnx_that_is_not_installed_is_one_message(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ContextsegError, match=r"pip install 'contextseg\[onnx\]'"):
        cs.export(finished, tmp_path / "model.onnx")


def test_what_fills_from_slices_is_no_network_on_a_patch(data: Path, tmp_path: Path) -> None:
    train_run(Run(tmp_path / "run", Settings(str(data), "stcn").set(TINY)))
    with pytest.raises(ContextsegError, match="labelled slices"):
        cs.export(tmp_path / "run", tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()
