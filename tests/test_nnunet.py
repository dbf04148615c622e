"""Models and plans of nnU-Net, read without it; tests/test_nnunet_peer.py has them beside it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn
from typer.testing import CliRunner

import contextseg as cs
import laws
from contextseg.cli import app
from contextseg.data import phantom
from contextseg.data.layouts import open_dataset
from contextseg.data.nnunet import NNUNetPlan, load_plan, read_nnunet_plan
from contextseg.data.nnunet_prepare import nearest_slices, thick_axis
from contextseg.data.prepare import normalise, prepare
from contextseg.errors import ContextsegError
from contextseg.losses import LOSSES
from contextseg.methods.colab import CoLab
from contextseg.nets.nnunet import nnunet_names
from contextseg.nets.unet import ResidualUNet, UNet
from contextseg.nets.weights import load_weights
from contextseg.nnunet import is_nnunet_model, open_nnunet
from contextseg.nnunet.bridge import MethodNetwork, batch_of, network_plan, trainer_settings
from contextseg.predict import segment, sliding_window
from contextseg.predictor import Member, Predictor
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.volume import Volume, read_labels

torch.set_num_threads(1)
LEVELS: dict[str, Any] = {
    "features_per_stage": [4, 8],
    "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [2, 2, 2]],
}
PLAIN = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {**LEVELS, "n_conv_per_stage": [2, 2], "n_conv_per_stage_decoder": [2]},
}
RESIDUAL = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "arch_kwargs": {**LEVELS, "n_blocks_per_stage": [1, 3], "n_conv_per_stage_decoder": [1]},
}
LABELS = {"background": 0, "bright": 1, "dark": 2}


def plans(scheme: str = "ZScoreNormalization", network: Any = PLAIN, **changed: Any) -> dict:
    """What nnU-Net would write for phantoms."""
    full = {
        "batch_size": 2,
        "patch_size": [12, 16, 16],
        "spacing": [2.0, 1.0, 1.0],
        "normalization_schemes": [scheme],
        "use_mask_for_norm": [False],
        "architecture": network,
        "batch_dice": False,
    }
    facts = {"percentile_00_5": -100.0, "percentile_99_5": 150.0, "mean": 20.0, "std": 40.0}
    return {
        "dataset_name": "Dataset001_Phantom",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "original_median_spacing_after_transp": [2.0, 1.0, 1.0],
        "foreground_intensity_properties_per_channel": {"0": facts},
        "configurations": {"3d_fullres": full | changed},
    }


def dataset(labels: dict | None = None) -> dict:
    return {"channel_names": {"0": "MR"}, "labels": labels or LABELS, "file_ending": ".nii.gz"}


def their_weights(net: nn.Module) -> dict[str, torch.Tensor]:
    """A network's tensors as nnU-Net names them, with the biases that ours has no use for."""
    names = nnunet_names(net)
    weights = {}
    for name, value in net.state_dict().items():
        part, _, leaf = name.rpartition(".")
        weights[f"{names[part]}.{leaf}"] = value
        if value.ndim == 5 and "seg_layers" not in names[part] and leaf == "weight":
            outputs = value.shape[1] if "transpconvs" in names[part] else value.shape[0]
            weights.setdefault(f"{names[part]}.bias", torch.zeros(outputs))
    return weights


def network(kind: Any, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    more = {"blocks": [1, 3]} if kind is ResidualUNet else {}
    return kind(1, 3, [4, 8], LEVELS["strides"], LEVELS["kernel_sizes"], deep=False, **more)


def write_model(folder: Path, content: dict | None = None, folds: int = 1, net: Any = None) -> Path:
    """A folder as nnUNetv2_train leaves it."""
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(content or plans()), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset()), encoding="utf-8")
    for fold in range(folds):
        checkpoint = {
            "network_weights": their_weights(net or network(UNet, fold)),
            "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(1)], "other": np.zeros(2)},
            "_best_ema": np.float64(0.25),
            "init_args": {"configuration": "3d_fullres", "device": torch.device("cpu")},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": (0, 2),
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nnunet") / "Dataset001_Phantom"
    return phantom.write_dataset(folder, labelled=2, test=1, classes=3, shape=(14, 18, 20))


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "described"), [(UNet, PLAIN), (ResidualUNet, RESIDUAL)])
def test_a_network_of_nnunet_computes_what_ours_does(
    kind: Any, described: dict, tmp_path: Path
) -> None:
    net = network(kind).eval()
    model = write_model(tmp_path / "model", plans(network=described), net=net)
    opened = open_nnunet(model, "cpu")[0]
    image = torch.randn(2, 1, 12, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(opened.method.predict(image), net(image))
    assert opened.plan.mirror == (True, False, True)
    assert opened.plan.classes == ("background", "bright", "dark")


def test_a_bias_of_a_transposed_convolution_counts(tmp_path: Path) -> None:
    """At the image's edge it does not vanish in the next norm."""
    model = write_model(tmp_path / "model")
    file = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    content["network_weights"]["decoder.transpconvs.0.bias"] = torch.arange(4.0)
    torch.save(content, file)
    image = torch.randn(1, 1, 12, 16, 16)
    with torch.no_grad():
        z = open_nnunet(model, "cpu")[0].method.predict(image)
        assert not torch.allclose(z, network(UNet).eval()(image))


@pytest.mark.parametrize("kind", [UNet, ResidualUNet])
def test_a_training_starts_from_nnunets_weights(kind: Any, tmp_path: Path) -> None:
    """All but a head for other classes, and the biases that ours has no use for."""
    model = write_model(tmp_path / "model", net=network(kind))
    net = network(kind, seed=1)
    loaded = load_weights(net, model / "fold_0" / "checkpoint_final.pth")
    assert (loaded.source, loaded.share, loaded.missing) == ("nnunet", 1.0, ())
    assert all(name.endswith(".bias") for name in loaded.skipped)
    expected = network(kind).state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in net.state_dict().items())


# --- opening --------------------------------------------------------------------------------------


def test_a_model_predicts_from_the_command_line(data: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    words = ["predict", str(model), "--input", str(data / "imagesTs"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--device", "cpu", "--set", "mirror=false"])
    assert done.exit_code == 0, done.output
    label = read_labels(tmp_path / "out" / "phantom_002.nii.gz")
    assert label.shape == (14, 18, 20)
    made_by = json.loads((tmp_path / "out" / "predicted_by.json").read_text(encoding="utf-8"))
    assert "NNUNet-" in json.dumps(made_by)


def test_all_finished_folds_are_an_ensemble_as_in_nnunet(data: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", folds=2)
    scan = next((data / "imagesTs").glob("*.nii.gz"))
    both = cs.load(model, device="cpu")
    assert len(both.members) == 2
    (model / "fold_1").rename(model / "fold_all")
    assert len(open_nnunet(model)) == 1
    assert len(open_nnunet(model / "fold_all")) == 1
    one, other = (cs.load(model / name, device="cpu") for name in ("fold_0", "fold_all"))
    joint = Predictor([*one.members, *other.members], both.settings)
    assert (joint.predict(scan).label.array == both.predict(scan).label.array).all()
    file = model / "fold_0" / "checkpoint_final.pth"
    assert len(cs.load(file, device="cpu").members) == 1


def test_models_of_both_kinds_are_no_ensemble_of_one_preparation(
    data: Path, tmp_path: Path
) -> None:
    member = open_nnunet(write_model(tmp_path / "model"), "cpu")[0]
    with pytest.raises(ContextsegError, match="prepared in other ways"):
        Predictor([member, Member(laws.make("supervised"), laws.plan())])


def test_context_classes_of_our_trainers_are_background_again(tmp_path: Path) -> None:
    net = UNet(1, 5, [4, 8], LEVELS["strides"], LEVELS["kernel_sizes"], deep=False)
    file = write_model(tmp_path / "model", net=net) / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    weights = {f"method.net.net.{name}": x for name, x in content["network_weights"].items()}
    content["network_weights"] = weights | {"method.generator.net.heads.0.bias": torch.ones(2)}
    torch.save(content, file)
    z = open_nnunet(file, "cpu")[0].method.predict(torch.randn(1, 1, 8, 8, 8))
    assert z.shape == (1, 3, 8, 8, 8)


class _Code:
    """Runs a command where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    file = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    torch.save(content | {"logging": _Code(tmp_path / "proof")}, file, pickle_module=pickle)
    with pytest.raises(ContextsegError, match=r"cannot be read safely.*system.*network_weights"):
        open_nnunet(model)
    assert not (tmp_path / "proof").exists()


def test_what_cannot_be_predicted_is_refused_with_a_remedy(tmp_path: Path) -> None:
    where = Path("plans.json")
    odd = {**PLAIN, "network_class_name": "somewhere.Primus"}
    refused = [
        (plans(previous_stage="3d_lowres"), dataset(), "cascade.*3d_fullres"),
        (plans(), dataset({"background": 0, "whole": [1, 2], "core": 2}), "regions"),
        (plans(scheme="Other"), dataset(), "normalisation Other"),
        (plans(resampling_fn_data="resample_torch_fornnunet"), dataset(), "resample_torch"),
        ({"configurations": {"3d_fullres": {}}}, dataset(), "not nnU-Net's plans"),
    ]
    for content, table, message in refused:
        with pytest.raises(ContextsegError, match=message):
            read_nnunet_plan(content, table, "3d_fullres", where)
    with pytest.raises(ContextsegError, match="did you mean 3d_fullres"):
        read_nnunet_plan(plans(), dataset(), "3d_full", where)
    model = write_model(tmp_path / "odd", plans(network=odd))
    with pytest.raises(ContextsegError, match=r"somewhere\.Primus.*PlainConvUNet"):
        open_nnunet(model)
    model = write_model(tmp_path / "unfinished")
    final = model / "fold_0" / "checkpoint_final.pth"
    final.rename(final.with_name("checkpoint_best.pth"))
    with pytest.raises(
        ContextsegError, match=r"no fold has checkpoint_final.*checkpoint_best\.pth"
    ):
        open_nnunet(model)
    assert len(open_nnunet(final.with_name("checkpoint_best.pth"))) == 1
    assert not is_nnunet_model(tmp_path)


def test_plans_before_version_2_3_and_inherited_configurations_are_read() -> None:
    content = plans()
    full = content["configurations"]["3d_fullres"]
    del full["architecture"]
    full |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 16,
        "unet_max_num_features": 24,
        "n_conv_per_stage_encoder": [2, 2],
        "n_conv_per_stage_decoder": [2],
        "conv_kernel_sizes": LEVELS["kernel_sizes"],
        "pool_op_kernel_sizes": LEVELS["strides"],
    }
    content["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 7}
    plan = read_nnunet_plan(content, dataset(), "mine", Path("plans.json"))
    assert (plan.widths, plan.batch_size, plan.patch_vox) == ((16, 24), 7, (12, 16, 16))


# --- preparation ----------------------------------------------------------------------------------


def scan(shape=(9, 12, 10), spacing=(2.0, 1.0, 1.0), seed=0) -> Volume:
    image = np.random.default_rng(seed).normal(100, 30, (1, *shape)).astype(np.float32)
    image[:, 0] = image[:, :, :2] = 0  # cropped
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing
    affine[3, 3] = 1
    return Volume(image, affine)


def prepared(volume: Volume, plan: NNUNetPlan) -> np.ndarray:
    raw, _, _, record = prepare(volume, plan)
    return normalise(raw, plan.channels, record)


def nnunet_plan(**changed: Any) -> NNUNetPlan:
    scheme = changed.pop("scheme", "ZScoreNormalization")
    return read_nnunet_plan(plans(scheme, **changed), dataset(), "3d_fullres", Path("plans.json"))


def spline(x: np.ndarray, shape, order: int = 3) -> np.ndarray:
    zoom = [n / m for n, m in zip(shape, x.shape)]
    out = ndimage.zoom(x.astype(float), zoom, order=order, mode="nearest", grid_mode=True)
    return np.clip(out, x.min(), x.max())


def test_a_scan_is_cropped_normalised_and_resampled_as_by_nnunet() -> None:
    volume = scan(spacing=(3.0, 1.0, 1.5))
    own = volume.array[0, 1:, 2:]
    expected = spline((own - own.mean()) / own.std(), (12, 10, 15))
    found = prepared(volume, nnunet_plan())[0]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_ct_is_clipped_before_it_is_resampled() -> None:
    volume = scan(spacing=(3.0, 1.0, 1.5))
    own = (np.clip(volume.array[0, 1:, 2:], -100, 150) - 20) / 40
    found = prepared(volume, nnunet_plan(scheme="CTNormalization"))[0]
    np.testing.assert_allclose(found, spline(own, (12, 10, 15)), atol=2e-4)


def test_thick_slices_are_resampled_one_by_one() -> None:
    volume = scan(spacing=(7.0, 1.0, 1.5))
    own = volume.array[0, 1:, 2:]
    own = (own - own.mean()) / own.std()
    flat = np.stack([spline(plane, (10, 15)) for plane in own])
    found = prepared(volume, nnunet_plan(spacing=[4.0, 1.0, 1.0]))[0]
    index = np.floor((np.arange(14) + 0.5) * 8 / 14).astype(int)
    np.testing.assert_allclose(found, flat[index], atol=2e-4)
    assert (nearest_slices(8, 14) == index).all()


def test_inside_the_mask_alone_where_nnunet_says_so() -> None:
    volume = scan()
    volume.array[0, 4, 5, 5] = 0  # a hole, which counts as inside
    volume.array[0, 1, 2:7] = 0  # outside
    own = volume.array[0, 1:, 2:]
    there = ndimage.binary_fill_holes(own != 0)
    expected = np.where(there, (own - own[there].mean()) / own[there].std(), 0)
    found = prepared(volume, nnunet_plan(use_mask_for_norm=[True]))[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_axes_are_those_of_the_file_in_nnunets_order() -> None:
    content = plans() | {"transpose_forward": [2, 0, 1]}
    content["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 2.0]
    plan = read_nnunet_plan(content, dataset(), "3d_fullres", Path("plans.json"))
    volume = scan().oriented("PIL")
    found, _, _, record = prepare(volume, plan)
    assert record.target == "LPI"
    assert found.shape[1:] == (10, 10, 8)
    reoriented = read_nnunet_plan(
        content | {"image_reader_writer": "NibabelIOWithReorient"},
        dataset(),
        "3d_fullres",
        Path("plans.json"),
    )
    assert prepare(volume, reoriented)[3].target == "RSA"


@pytest.mark.parametrize(
    ("own", "wanted", "separate", "axis"),
    [
        ((5, 1, 1), (1, 1, 1), None, 0),
        ((1, 1, 1), (1, 1, 5), None, 2),
        ((3, 1, 1), (3, 1, 1), None, None),
        ((2, 1, 1), (2, 1, 1), True, 0),
        ((9, 1, 1), (9, 1, 1), False, None),
        ((4, 4, 1), (4, 4, 1), None, None),
    ],
)
def test_the_axis_of_thick_slices(own, wanted, separate, axis) -> None:
    assert thick_axis(own, wanted, separate) == axis


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_logits_are_taken_slice_by_slice_along_an_axis(axis: int) -> None:
    image = np.random.default_rng(0).normal(size=(1, 4, 5, 6))

    def predict(x):
        return torch.cat([-x, x], 1)

    size = [4, 5, 6]
    index = np.repeat(np.arange(size[axis]), [2, 0, 3, *[1] * (size[axis] - 3)])
    shape = list(size)
    shape[axis] = len(index)
    kept = {"device": "cpu", "step": 0.5}
    found = segment(predict, image, shape, (2, 5, 6), slices=(axis, index), **kept)
    slabs = list(sliding_window(predict, image, (2, 5, 6), **kept))
    whole = torch.cat([z for *_, z in slabs], 1).argmax(0).numpy()
    assert (found == whole.take(index, axis)).all()


# --- elsewhere ------------------------------------------------------------------------------------


def test_a_model_gives_context_classes(data: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    words = ["context=predicted", f"masks={model}", "steps=1", "base_width=4", "batch_size=2"]
    words += ["patch_vox=8,8,8", "max_levels=2", "device=cpu"]
    run = Run(tmp_path / "run", Settings(str(data), "context", roi=("bright",)).set(words))
    run.check()
    run.make_plan()
    run.preprocess()
    method = run.fit()
    assert method.context_classes == 2  # the background, and "dark"
    names = json.loads(
        (run.stage_folder("structures-1") / "structures.json").read_text(encoding="utf-8")
    )
    assert names == ["bright", "dark"]


def test_a_model_is_the_reference_of_two_stages(data: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    made = cs.two_stage(
        model, data / "imagesTs", tmp_path / "out", device="cpu", mirror=False, verbose=False
    )
    assert read_labels(made["phantom_002"]).shape == (14, 18, 20)


def test_a_training_takes_nnunets_plans(data: Path, tmp_path: Path) -> None:
    content = plans() | {"transpose_forward": [2, 0, 1]}
    content["configurations"]["3d_fullres"] |= {
        "spacing": [1.5, 2.0, 1.0],
        "patch_size": [8, 10, 12],
    }
    flat = {"strides": [[1, 1], [2, 1]], "kernel_sizes": [[3, 1], [3, 3]]}
    network = {**PLAIN, "arch_kwargs": {**PLAIN["arch_kwargs"], **flat}}
    content["configurations"]["2d"] = {
        **content["configurations"]["3d_fullres"],
        "spacing": [2.0, 1.0],
        "patch_size": [10, 12],
        "architecture": network,
    }
    file = tmp_path / "nnUNetPlans.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "dataset.json").write_text(json.dumps(dataset()), encoding="utf-8")
    opened = open_dataset(data)
    plan = load_plan(file, opened)
    assert plan.orientation == "SAR"
    assert (plan.spacing_mm, plan.patch_vox) == ((2.0, 1.0, 1.5), (10, 12, 8))
    assert plan.widths == (4, 8)
    sliced = load_plan(f"{file}:2d", opened)  # across the axis from left to right
    assert (sliced.orientation, sliced.patch_vox) == ("RSA", (10, 12))
    assert (sliced.strides[1], sliced.kernels[0]) == ((2, 1), (3, 1))
    run = cs.train(data, tmp_path / "run", plan=file, steps=1, device="cpu", verbose=False)
    assert run.plan == plan
    other = dataset({"background": 0, "liver": 1})
    (tmp_path / "dataset.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(ContextsegError, match=r"liver; the data set's are bright, dark"):
        load_plan(file, opened)


# --- the bridge to its trainer --------------------------------------------------------------------


class Theirs(nn.Module):
    """A network shaped as nnU-Net's: an encoder, a decoder that knows it, and shared modules."""

    class Decoder(nn.Module):
        def __init__(self, encoder: nn.Module, outputs: int) -> None:
            super().__init__()
            self.deep_supervision = True
            self.encoder = encoder
            self.seg_layers = nn.ModuleList(nn.Conv3d(8, outputs, 1) for _ in range(2))

        def forward(self, skips):
            outputs = [layer(x) for layer, x in zip(self.seg_layers, skips)]
            return outputs if self.deep_supervision else outputs[0]

    class Encoder(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.conv = nn.Conv3d(inputs, 8, 3, padding=1)
            self.all_modules = nn.Sequential(self.conv)

        def forward(self, x):
            first = self.all_modules(x)
            return [first, nn.functional.avg_pool3d(first, 2)]

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.encoder = self.Encoder(inputs)
        self.decoder = self.Decoder(self.encoder, outputs)

    def forward(self, x):
        return self.decoder(self.encoder(x))


def test_a_method_trains_nnunets_network() -> None:
    plan = network_plan(plans()["configurations"]["3d_fullres"], 1, 3)
    torch.manual_seed(0)
    whole = MethodNetwork(CoLab(plan, context_classes=3), lambda n: Theirs(1, n), plan.strides)
    batch = {"data": torch.randn(2, 1, 12, 16, 16), "keys": np.array(["a", "b"])}
    label = torch.randint(0, 4, (2, 1, 12, 16, 16)).float()
    batch["target"] = [label, label[..., ::2, ::2, ::2]]
    items = batch_of(batch, plan, 3, {"b": [True, True, False]}, torch.device("cpu"))
    assert set(items.label.unique().tolist()) == {-1, 0, 1, 2}
    assert items.annotated.tolist() == [[True] * 3, [True, True, False]]
    assert items.case.tolist() == [0, 1]
    before = dict(whole.named_parameters())
    groups = whole.method.optimizers(0.1)
    whole.method(items)["seg"].backward()
    ahead = whole.method.lookahead(items, 0.1, 0, lambda values: None)
    assert len(ahead["generator"]) == len(groups["generator"].param_groups[0]["params"])
    assert any(float(g.abs().max()) > 0 for g in ahead["generator"])
    assert all(p is before[name] for name, p in whole.named_parameters())
    whole.eval()
    assert [z.shape for z in whole(batch["data"])] == [(2, 3, 12, 16, 16)]
    whole.decoder.deep_supervision = False
    assert whole(batch["data"]).shape == (2, 3, 12, 16, 16)


def test_the_settings_of_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("contextseg_settings", raising=False)
    assert trainer_settings(CoLab) == {}
    text = f"context_classes=4 epochs=20 loss={next(iter(LOSSES))} class_weights=1,2"
    monkeypatch.setenv("contextseg_settings", text)
    found = trainer_settings(CoLab)
    assert (found["context_classes"], found["epochs"], found["class_weights"]) == (4, 20, (1, 2))
    for wrong, message in (("net=unet", "no such setting"), ("epochs=many", "type int")):
        monkeypatch.setenv("contextseg_settings", wrong)
        with pytest.raises(ContextsegError, match=message):
            trainer_settings(CoLab)
