"""Pretrained weights: files in everyone's names and orders, written out by hand, and methods."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import laws
from contextseg.errors import ContextsegError
from contextseg.methods import CPS, METHODS, CoLab, Supervised
from contextseg.methods.cmu import Classifier
from contextseg.nets import DeepLab, SmallDeepLab, SmallTransUNet
from contextseg.nets.efficientnet import EfficientNet
from contextseg.nets.weights import load_weights, read_weights

torch.set_num_threads(1)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def like(part: nn.Module, name: str) -> dict[str, Tensor]:
    """Random tensors of a part's shapes, by another name."""
    return {
        f"{name}.{leaf}": torch.randn_like(x) if x.is_floating_point() else x
        for leaf, x in part.state_dict().items()
    }


# --- TransUNet ------------------------------------------------------------------------------------
# The small network in others' names and orders, written out here by hand: width 8, one unit a
# stage, two layers of 64 numbers in four heads, perceptrons of 128; position embeddings for 8 x 8
# places.

WIDTHS = [8, 32, 64, 128]


def google(places: int = 64) -> dict[str, np.ndarray]:
    """As R50+ViT-B_16.npz: kernels (H, W, I, O) and (I, O), norms (1, 1, 1, C), heads apart, a
    token of the class.
    """
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "conv_root/kernel": (7, 7, 3, 8),
        "cls": (1, 1, 64),
        "head/kernel": (64, 10),
    }
    norms = {"gn_root": 8}
    for s, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        unit, inner = f"block{s + 1}/unit1", outputs // 4
        shapes[f"{unit}/conv1/kernel"] = (1, 1, inputs, inner)
        shapes[f"{unit}/conv2/kernel"] = (3, 3, inner, inner)
        shapes[f"{unit}/conv3/kernel"] = (1, 1, inner, outputs)
        shapes[f"{unit}/conv_proj/kernel"] = (1, 1, inputs, outputs)
        norms |= {
            f"{unit}/gn1": inner,
            f"{unit}/gn2": inner,
            f"{unit}/gn3": outputs,
            f"{unit}/gn_proj": outputs,
        }
    for name, width in norms.items():
        shapes |= {f"{name}/scale": (1, 1, 1, width), f"{name}/bias": (1, 1, 1, width)}
    shapes |= {"embedding/kernel": (1, 1, 128, 64), "embedding/bias": (64,)}
    shapes["Transformer/posembed_input/pos_embedding"] = (1, 1 + places, 64)
    for i in range(2):
        layer = f"Transformer/encoderblock_{i}"
        for part in ("query", "key", "value"):
            shapes[f"{layer}/MultiHeadDotProductAttention_1/{part}/kernel"] = (64, 4, 16)
            shapes[f"{layer}/MultiHeadDotProductAttention_1/{part}/bias"] = (4, 16)
        shapes[f"{layer}/MultiHeadDotProductAttention_1/out/kernel"] = (4, 16, 64)
        shapes[f"{layer}/MultiHeadDotProductAttention_1/out/bias"] = (64,)
        shapes |= {
            f"{layer}/MlpBlock_3/Dense_0/kernel": (64, 128),
            f"{layer}/MlpBlock_3/Dense_0/bias": (128,),
        }
        shapes |= {
            f"{layer}/MlpBlock_3/Dense_1/kernel": (128, 64),
            f"{layer}/MlpBlock_3/Dense_1/bias": (64,),
        }
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{layer}/{norm}/scale": (64,), f"{layer}/{norm}/bias": (64,)}
    shapes |= {"Transformer/encoder_norm/scale": (64,), "Transformer/encoder_norm/bias": (64,)}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def test_weights_of_google(tmp_path: Path) -> None:
    arrays = google()
    np.savez(tmp_path / "R50.npz", **arrays)
    net = SmallTransUNet(3, 4)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    done = load_weights(net, tmp_path / "R50.npz")
    assert done.source == "google"
    assert all(name.startswith(("bridge.", "ups.", "head.")) for name in done.missing)
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in done.missing)
    assert not any(torch.equal(net.state_dict()[name], before[name]) for name in done.loaded)
    keys = [
        f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/key/bias" for i in range(2)
    ]
    assert set(done.skipped) == {"cls", "head/kernel", *keys}
    loaded = sum(net.state_dict()[name].numel() for name in done.loaded)
    assert done.share == pytest.approx(loaded / count(net))
    assert "google" in str(done)
    # a convolution, a head of the attention, and its way out, as JAX applies them
    x = torch.randn(1, 8, 5, 6)
    kernel = torch.from_numpy(arrays["block1/unit1/conv1/kernel"])[0, 0]
    unit = net.stages[0][0]
    torch.testing.assert_close(
        F.conv2d(x, unit.conv1.weight), torch.einsum("bihw,io->bohw", x, kernel)
    )
    y, layer = torch.randn(5, 64), "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    want = (
        np.einsum("ni,ihd->nhd", y.numpy(), arrays[f"{layer}/query/kernel"])
        + arrays[f"{layer}/query/bias"]
    )
    np.testing.assert_allclose(net.layers[1].query(y).detach().view(5, 4, 16), want, atol=1e-5)
    want = np.einsum("nhd,hdo->no", y.view(5, 4, 16).numpy(), arrays[f"{layer}/out/kernel"])
    np.testing.assert_allclose(
        (net.layers[1].out(y) - net.layers[1].out.bias).detach(), want, atol=1e-5
    )
    assert torch.equal(
        net.places[0, :, 2, 3],
        torch.from_numpy(arrays["Transformer/posembed_input/pos_embedding"][0, 1 + 2 * 8 + 3]),
    )


def test_other_channels_and_places_are_fitted(tmp_path: Path) -> None:
    arrays = google(places=4)
    arrays["Transformer/posembed_input/pos_embedding"][:] = np.arange(5).reshape(
        1, 5, 1
    )  # the class, then 1 to 4
    np.savez(tmp_path / "R50.npz", **arrays)
    net = SmallTransUNet(1, 4)
    load_weights(net, tmp_path / "R50.npz", "google")
    assert net.places[0, 0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [1, 2, 3, 4]
    root = torch.from_numpy(arrays["conv_root/kernel"]).permute(3, 2, 0, 1)
    torch.testing.assert_close(
        net.root[0].weight, root.sum(1, keepdim=True)
    )  # a grey image gives what it gave as RGB


def test_timm_s_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = SmallTransUNet(3, 4)
    theirs: dict[str, Tensor] = {
        "cls_token": torch.randn(1, 1, 64),
        "pos_embed": torch.randn(1, 65, 64),
    }
    for name in ("stem.conv", "stem.norm"):
        theirs |= like(net.root[0 if name.endswith("conv") else 1], f"patch_embed.backbone.{name}")
    for s in range(3):
        block, unit = f"patch_embed.backbone.stages.{s}.blocks.0", net.stages[s][0]
        for part in ("conv1", "norm1", "conv2", "norm2", "conv3", "norm3"):
            theirs |= like(getattr(unit, part), f"{block}.{part}")
        theirs |= like(unit.skip[0], f"{block}.downsample.conv") | like(
            unit.skip[1], f"{block}.downsample.norm"
        )
    theirs |= like(net.embed, "patch_embed.proj") | like(net.norm, "norm")
    for i in range(2):
        theirs |= {
            f"blocks.{i}.attn.qkv.weight": torch.randn(192, 64),
            f"blocks.{i}.attn.qkv.bias": torch.randn(192),
        }
        for ours, name in (
            ("out", "attn.proj"),
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("fc1", "mlp.fc1"),
            ("fc2", "mlp.fc2"),
        ):
            theirs |= like(getattr(net.layers[i], ours), f"blocks.{i}.{name}")
    torch.save(
        {"state_dict": {f"module.{name}": x for name, x in theirs.items()}}, tmp_path / "vit.pth"
    )
    done = load_weights(net, tmp_path / "vit.pth")
    assert done.source == "timm"
    assert all(name.startswith(("bridge.", "ups.", "head.")) for name in done.missing)
    assert set(done.skipped) == {"cls_token", "blocks.0.attn.key.bias", "blocks.1.attn.key.bias"}
    assert torch.equal(net.layers[1].key.weight, theirs["blocks.1.attn.qkv.weight"][64:128])
    assert torch.equal(net.layers[0].value.bias, theirs["blocks.0.attn.qkv.bias"][128:])


def authors(net: SmallTransUNet) -> dict[str, Tensor]:
    """A whole checkpoint by the names of TransUNet's authors."""
    lead = "transformer.embeddings"
    theirs = {f"{lead}.position_embeddings": torch.randn(1, 64, 64)}
    theirs |= like(net.root[0], f"{lead}.hybrid_model.root.conv") | like(
        net.root[1], f"{lead}.hybrid_model.root.gn"
    )
    for s in range(3):
        unit, name = net.stages[s][0], f"{lead}.hybrid_model.body.block{s + 1}.unit1"
        for n in (1, 2, 3):
            theirs |= like(getattr(unit, f"conv{n}"), f"{name}.conv{n}") | like(
                getattr(unit, f"norm{n}"), f"{name}.gn{n}"
            )
        theirs |= like(unit.skip[0], f"{name}.downsample") | like(unit.skip[1], f"{name}.gn_proj")
    theirs |= like(net.embed, f"{lead}.patch_embeddings") | like(
        net.norm, "transformer.encoder.encoder_norm"
    )
    for i in range(2):
        name = f"transformer.encoder.layer.{i}"
        for part in ("query", "key", "value", "out"):
            theirs |= like(getattr(net.layers[i], part), f"{name}.attn.{part}")
        theirs[f"{name}.attn.key.bias"] = torch.randn(64)
        for ours, other in (
            ("norm1", "attention_norm"),
            ("norm2", "ffn_norm"),
            ("fc1", "ffn.fc1"),
            ("fc2", "ffn.fc2"),
        ):
            theirs |= like(getattr(net.layers[i], ours), f"{name}.{other}")
    theirs |= like(net.bridge, "decoder.conv_more") | like(net.head, "segmentation_head.0")
    for i in range(4):
        theirs |= like(net.ups[i][0], f"decoder.blocks.{i}.conv1") | like(
            net.ups[i][1], f"decoder.blocks.{i}.conv2"
        )
    return theirs


def test_the_authors_weights_are_all_of_it_and_need_batch_norm(tmp_path: Path) -> None:
    net = SmallTransUNet(3, 4, norm="batch")
    theirs = authors(net)
    torch.save(
        {f"model1.{name}": x for name, x in theirs.items()} | {"model2.x": torch.zeros(3)},
        tmp_path / "both.pt",
    )
    done = load_weights(net, tmp_path / "both.pt", prefix="model1.")
    assert (done.source, done.missing, done.share) == ("authors", (), 1)
    assert done.skipped == tuple(f"transformer.encoder.layer.{i}.attn.key.bias" for i in range(2))
    assert torch.equal(
        net.ups[2][1][1].running_mean, theirs["decoder.blocks.2.conv2.1.running_mean"]
    )
    plain = SmallTransUNet(3, 4)
    before = {name: x.clone() for name, x in plain.state_dict().items()}
    with pytest.raises(
        ContextsegError, match=r'batch norm, and the network has group norm.*norm="batch"'
    ):
        load_weights(plain, tmp_path / "both.pt", prefix="model1.")
    assert all(torch.equal(x, before[name]) for name, x in plain.state_dict().items())
    other = SmallTransUNet(3, 7, norm="batch")  # other classes
    assert load_weights(other, tmp_path / "both.pt", prefix="model1.").missing == (
        "head.weight",
        "head.bias",
    )


# --- DeepLabV3+ -----------------------------------------------------------------------------------


def timm(encoder: EfficientNet) -> dict[str, Tensor]:
    theirs = like(encoder.stem[0], "conv_stem") | like(encoder.stem[1], "bn1")
    for s, stage in enumerate(encoder.stages):
        for i, block in enumerate(stage):
            lead = f"blocks.{s}.{i}"
            if s == 0:  # depthwise, then pointwise
                parts = {"conv_dw": block.depthwise[0], "bn1": block.depthwise[1]}
                parts |= {"conv_pw": block.project[0], "bn2": block.project[1]}
            else:
                parts = {"conv_pw": block.expand[0], "bn1": block.expand[1]}
                parts |= {"conv_dw": block.depthwise[0], "bn2": block.depthwise[1]}
                parts |= {"conv_pwl": block.project[0], "bn3": block.project[1]}
            for name, part in {
                **parts,
                "se.conv_reduce": block.squeeze,
                "se.conv_expand": block.excite,
            }.items():
                theirs |= like(part, f"{lead}.{name}")
    return theirs | {
        "conv_head.weight": torch.randn(1536, 384, 1, 1),
        "bn2.running_mean": torch.randn(1536),
    }


def torchvision(encoder: EfficientNet) -> dict[str, Tensor]:
    theirs = like(encoder.stem[:2], "features.0")
    for s, stage in enumerate(encoder.stages):
        for i, block in enumerate(stage):
            lead = f"features.{s + 1}.{i}.block"
            steps = [block.depthwise[:2], (block.squeeze, block.excite), block.project]
            if s > 0:
                steps.insert(0, block.expand[:2])
            for n, step in enumerate(steps):
                if isinstance(step, tuple):
                    theirs |= like(step[0], f"{lead}.{n}.fc1") | like(step[1], f"{lead}.{n}.fc2")
                else:
                    theirs |= like(step, f"{lead}.{n}")
    return theirs | {"classifier.1.weight": torch.randn(1000, 1536)}


def smp(net: SmallDeepLab) -> dict[str, Tensor]:
    """A whole DeepLabV3+ of segmentation-models-pytorch."""
    theirs = like(net.encoder.stem[0], "encoder._conv_stem") | like(
        net.encoder.stem[1], "encoder._bn0"
    )
    for n, block in enumerate(block for stage in net.encoder.stages for block in stage):
        parts = {
            "_depthwise_conv": block.depthwise[0],
            "_bn1": block.depthwise[1],
            "_se_reduce": block.squeeze,
        }
        parts |= {
            "_se_expand": block.excite,
            "_project_conv": block.project[0],
            "_bn2": block.project[1],
        }
        if not isinstance(block.expand, nn.Identity):
            parts |= {"_expand_conv": block.expand[0], "_bn0": block.expand[1]}
        for name, part in parts.items():
            theirs |= like(part, f"encoder._blocks.{n}.{name}")
    theirs |= like(net.pyramid.branches[0], "decoder.aspp.0.convs.0")
    for n in (1, 2, 3):
        branch = net.pyramid.branches[n]
        theirs |= like(branch[:2], f"decoder.aspp.0.convs.{n}.0") | like(
            branch[2], f"decoder.aspp.0.convs.{n}.1"
        )
    pooled = net.pyramid.pooled
    theirs |= like(pooled[0], "decoder.aspp.0.convs.4.1") | like(
        pooled[1], "decoder.aspp.0.convs.4.2"
    )
    theirs |= like(net.pyramid.join, "decoder.aspp.0.project")
    theirs |= like(net.context[:2], "decoder.aspp.1") | like(net.context[2], "decoder.aspp.2")
    theirs |= like(net.fine, "decoder.block1")
    theirs |= like(net.merge[:2], "decoder.block2.0") | like(net.merge[2], "decoder.block2.1")
    return (
        theirs
        | like(net.head, "segmentation_head.0")
        | {"encoder._conv_head.weight": torch.randn(8, 8, 1, 1)}
    )


@pytest.mark.parametrize(
    ("make", "unused"),
    [(timm, {"conv_head.weight", "bn2.running_mean"}), (torchvision, {"classifier.1.weight"})],
)
def test_an_encoder_s_weights(make: object, unused: set[str], tmp_path: Path) -> None:
    net = DeepLab(1, 4, norm="batch")
    torch.manual_seed(1)
    theirs = make(net.encoder)  # type: ignore[operator]
    stem = next(iter(theirs))
    theirs[stem] = torch.randn(40, 3, 3, 3)
    torch.save(theirs, tmp_path / "b3.pth")
    done = load_weights(net, tmp_path / "b3.pth")
    assert done.source == make.__name__  # type: ignore[attr-defined]
    state = net.state_dict()
    assert set(done.loaded) == {name for name in state if name.startswith("encoder.")}
    assert set(done.skipped) == unused
    torch.testing.assert_close(state["encoder.stem.0.weight"], theirs[stem].sum(1, keepdim=True))
    there = {
        "timm": "blocks.5.2.bn2.running_var",
        "torchvision": "features.6.2.block.1.1.running_var",
    }[done.source]
    assert torch.equal(state["encoder.stages.5.2.depthwise.1.running_var"], theirs[there])
    with pytest.raises(ContextsegError, match='norm="batch"'):
        load_weights(DeepLab(3, 4), tmp_path / "b3.pth")


def test_a_whole_networks_weights(tmp_path: Path) -> None:
    net = SmallDeepLab(3, 4, norm="batch")
    theirs = smp(net)
    torch.save(theirs, tmp_path / "smp.pth")
    done = load_weights(net, tmp_path / "smp.pth")
    assert (done.source, done.missing, done.skipped) == (
        "authors",
        (),
        ("encoder._conv_head.weight",),
    )
    state = net.state_dict()
    # blocks 0, 1, 2-3, 4 of stages 0, 1, 2, 3
    assert torch.equal(
        state["encoder.stages.2.1.project.1.weight"], theirs["encoder._blocks.3._bn2.weight"]
    )
    assert torch.equal(
        state["encoder.stages.3.0.squeeze.bias"], theirs["encoder._blocks.4._se_reduce.bias"]
    )
    assert torch.equal(
        state["pyramid.branches.2.1.weight"], theirs["decoder.aspp.0.convs.2.0.1.weight"]
    )


# --- any file -------------------------------------------------------------------------------------


def test_a_run_s_own_weights(tmp_path: Path) -> None:
    net, other = SmallTransUNet(2, 3).eval(), SmallTransUNet(2, 3).eval()
    x = torch.randn(2, 2, 20, 30)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    torch.save({f"net.{name}": x for name, x in net.state_dict().items()}, tmp_path / "model.pt")
    done = load_weights(other, tmp_path / "model.pt")
    assert (done.source, done.missing, done.skipped) == ("contextseg", (), ())
    assert torch.equal(net(x), other(x))
    torch.save(
        {"method": {f"net.{name}": x for name, x in net.state_dict().items()}, "step": 3},
        tmp_path / "check.pt",
    )
    assert load_weights(other, tmp_path / "check.pt").share == 1


class Code:
    """Not a tensor."""


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    net = SmallTransUNet(3, 4)
    with pytest.raises(ContextsegError, match=r"gone\.pt: there is no such file"):
        load_weights(net, tmp_path / "gone.pt")
    (tmp_path / "text.pt").write_text("hello", encoding="utf-8")
    (tmp_path / "text.npz").write_text("hello", encoding="utf-8")
    torch.save({"a": Code(), "b": torch.zeros(3)}, tmp_path / "code.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    np.savez(tmp_path / "words.npz", a=np.array(["b"]))
    for name in ("text.pt", "text.npz", "code.pt", "empty.pt", "words.npz"):
        with pytest.raises(ContextsegError, match=rf"{name}: .*state_dict"):
            read_weights(tmp_path / name)
    with pytest.raises(ContextsegError, match=r"source=tim: .*timm"):
        load_weights(net, tmp_path / "gone.pt", "tim")
    # a BiT ResNet: other places for the norms, and nothing of the transformer
    torch.save(
        {"stem.conv.weight": torch.zeros(64, 3, 7, 7), "head.fc.bias": torch.zeros(4)},
        tmp_path / "bit.pt",
    )
    with pytest.raises(
        ContextsegError, match=r"bit\.pt: it has only 0% .*stem\.conv\.weight.*this architecture"
    ):
        load_weights(net, tmp_path / "bit.pt")


# --- methods --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.pt` of plain training on two classes, the background included."""
    folder = tmp_path_factory.mktemp("ours")
    torch.manual_seed(3)
    method = Supervised(laws.plan(2, classes=2))
    torch.save(method.state_dict(), folder / "model.pt")
    return folder / "model.pt"


def same(net: nn.Module, path: Path) -> bool:
    """Whether a network has the weights of `path`, wherever the shapes fit."""
    weights = torch.load(path, weights_only=True)
    return all(
        torch.equal(x, weights[f"net.{name}"])
        for name, x in net.state_dict().items()
        if x.shape == weights[f"net.{name}"].shape
    )


def test_a_method_starts_from_published_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "R50.npz"
    np.savez(path, **google())
    plan = laws.plan(2)
    method = Supervised(plan, net="transunet-small", weights=str(path))
    assert method.weights_report is None
    method.initialise()
    assert list(method.weights_report) == ["net"]
    report = method.weights_report["net"]
    assert (report["file"], report["source"]) == (str(path), "google")
    assert "layers.0.query.weight" in report["loaded"]
    assert {"head.weight", "bridge.0.weight"} <= set(report["missing"])
    assert {"cls", "head/kernel"} <= set(report["skipped"])
    assert 0.25 < report["share"] < 1
    assert json.loads(json.dumps(method.weights_report))["net"]["missing"]
    printed = capsys.readouterr().err
    assert all(word in printed for word in (f"net: weights of {path}", "google", "skipped"))
    kernel = torch.from_numpy(google()["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"])
    assert torch.equal(method.net.layers[0].fc1.weight, kernel.T)
    laws.train_briefly(method, tmp_path / "run", 1, 2)
    assert not torch.equal(method.net.layers[0].fc1.weight, kernel.T)


def test_a_file_that_is_gone_matters_at_the_start_alone(ours: Path, tmp_path: Path) -> None:
    plan = laws.plan(2, classes=2)
    method = Supervised(plan, weights=str(tmp_path / "gone.pt"))
    method.load_state_dict(torch.load(ours, weights_only=True))  # as a finished run does
    with pytest.raises(ContextsegError, match=r"gone\.pt: there is no such file"):
        method.initialise()


def test_without_a_file_nothing_is_loaded() -> None:
    torch.manual_seed(0)
    method = Supervised(laws.plan(2))
    before = {name: x.clone() for name, x in method.state_dict().items()}
    method.initialise()
    assert method.weights_report is None
    assert all(torch.equal(x, before[name]) for name, x in method.state_dict().items())


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("cmu-pretrain", "stcn")])
def test_every_method_starts_from_a_model_with_other_classes(name: str, ours: Path) -> None:
    method = laws.make(name, 2, weights=str(ours))
    method.initialise()
    ((part, report),) = method.weights_report.items()
    assert report["source"] == "contextseg"
    assert report["missing"]
    assert all(missing.startswith("heads.") for missing in report["missing"])
    assert report["skipped"]
    network = method.get_submodule(part)
    network = network.net if hasattr(network, "linear") else network
    assert same(network, ours)


def test_the_classifier_of_the_pretraining_starts_from_weights(ours: Path) -> None:
    method = Classifier(laws.plan(2), weights=str(ours))
    method.initialise()
    assert same(method.net.net, ours)


def test_stcn_starts_from_a_model_with_other_channels(tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = METHODS["stcn"](laws.plan(2))
    torch.save(other.state_dict(), tmp_path / "model.pt")
    method = METHODS["stcn"](laws.plan(2), weights=str(tmp_path / "model.pt"))
    method.initialise()
    assert method.weights_report["net"]["share"] == 1


def test_each_of_two_networks_has_its_own_file(ours: Path, tmp_path: Path) -> None:
    torch.save(CPS(laws.plan(2)).state_dict(), tmp_path / "cps.pt")
    both = CPS(laws.plan(2), weights=str(ours), second_weights=str(tmp_path / "cps.pt"))
    both.initialise()
    assert list(both.weights_report) == ["nets.0", "nets.1"]
    assert both.weights_report["nets.1"]["share"] == 1  # of the file, its first network
    second = CPS(laws.plan(2), second_weights=str(ours))
    before = {name: x.clone() for name, x in second.nets[0].state_dict().items()}
    second.initialise()
    assert list(second.weights_report) == ["nets.1"]
    assert all(torch.equal(x, before[name]) for name, x in second.nets[0].state_dict().items())


def test_the_generator_of_colab_keeps_its_new_weights(ours: Path) -> None:
    method = CoLab(laws.plan(2), weights=str(ours))
    before = {name: x.clone() for name, x in method.generator.state_dict().items()}
    method.initialise()
    assert all(torch.equal(x, before[name]) for name, x in method.generator.state_dict().items())


def test_weights_that_go_with_batch_norm(tmp_path: Path) -> None:
    path = tmp_path / "b3.pth"
    torch.save(timm(DeepLab(3, 2, norm="batch").encoder), path)
    method = Supervised(laws.plan(2), net="deeplab-batchnorm", weights=str(path))
    method.initialise()
    assert method.weights_report["net"]["source"] == "timm"
    with pytest.raises(ContextsegError, match="net=deeplab-batchnorm"):
        Supervised(laws.plan(2), net="deeplab", weights=str(path)).initialise()
