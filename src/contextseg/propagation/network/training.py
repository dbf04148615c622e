"""The training of the packaged network: by wall time, seeded, resumable.

    python -m contextseg.propagation.network.training --data training.npz --output runs/network \
        --seconds 280 --seed 0

The learning rate follows a cosine over the given seconds, so that any number of them ends well. A
checkpoint is written every 20 s, and the same command goes on from it. `network.npz` in the output
holds the averaged weights in half precision, as the package carries them; `log.jsonl` a line for
each report.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from contextseg.disk import replacing, write_tensors
from contextseg.inputs import damage_named, read_tensors
from contextseg.nets.completion import WIDTHS, CompletionNet
from contextseg.propagation.network.drawing import Recipe, StackDrawing, Stacks
from contextseg.propagation.network.features import CHANNELS
from contextseg.propagation.network.store import Store

CHECKPOINT_EVERY = 20.0
REPORT_EVERY = 10.0
VALIDATE_EVERY = 40.0
"""In seconds."""


@dataclass(frozen=True)
class TrainingSettings:
    """What a training depends on, beside its data.

    Attributes:
        seconds: Of training in all.
        seed: Of weights and examples.
        batch: Examples of a step.
        lr: Highest learning rate (AdamW).
        weight_decay: Of AdamW.
        ema: Decay of the averaged weights.
        widths: Channels of the network's stages.
        validation: Batches of the validation.
    """

    seconds: float = 280.0
    seed: int = 0
    batch: int = 16
    lr: float = 2e-3
    weight_decay: float = 1e-2
    ema: float = 0.998
    widths: tuple[int, ...] = WIDTHS
    validation: int = 16


def loss(logits: Tensor, stacks: Stacks) -> Tensor:
    """Cross-entropy and Dice of the slices that are not labelled, mean over the examples."""
    target, weight = stacks.target.float(), stacks.weight
    voxel = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    dims = (1, 2, 3)
    # a small structure's voxels are not lost among the background's
    size = 2 * (target * weight).sum(dims) + 0.03 * weight.sum(dims)
    cross = (voxel * weight).sum(dims) / size.clamp(min=1)
    p = logits.sigmoid()
    overlap = (p * target * weight).sum(dims)
    size = ((p + target) * weight).sum(dims)
    dice = 1 - (2 * overlap + 20) / (size + 20)
    usable = (weight.sum(dims) > 0).float()
    return ((cross + dice) * usable).sum() / usable.sum().clamp(min=1)


def dice_scores(logits: Tensor, stacks: Stacks) -> tuple[Tensor, Tensor]:
    """Dice of each example with the labelled slices filled in: the network's, interpolation's."""
    dims = (1, 2, 3)
    target = stacks.target
    given = target & (stacks.weight == 0)
    open_ = stacks.weight > 0
    aligned = stacks.features[:, CHANNELS.index("aligned")] > 0
    between = stacks.features[:, CHANNELS.index("beyond")] == 0
    scores = []
    for decided in (logits > 0, aligned & between):
        found = given | (decided & open_)
        both = (found & target).sum(dims)
        scores.append(2 * both / (found.sum(dims) + target.sum(dims)).clamp(min=1))
    return scores[0], scores[1]


class CompletionTraining:
    """One training: its networks, its clock and its files.

    Args:
        data: File of `prepare`.
        output: Folder of the results.
        settings: What it depends on.
        recipe: How examples are drawn.
        device: Where it runs.

    Raises:
        ContextsegError: The data or the checkpoint that it goes on from are damaged.
    """

    def __init__(
        self,
        data: Path,
        output: Path,
        settings: TrainingSettings,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self.output, self.settings, self.recipe, self.device = output, settings, recipe, device
        output.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.net = CompletionNet(len(CHANNELS), settings.widths).to(device)
        self.average = CompletionNet(len(CHANNELS), settings.widths).to(device).eval()
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.allow_tf32 = True
            for net in (self.net, self.average):
                net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average.load_state_dict(self.net.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), settings.lr, weight_decay=settings.weight_decay
        )
        self.step, self.spent = 0, 0.0
        store = Store(data, device)
        self.drawing = StackDrawing(store, recipe, settings.batch, settings.seed)
        held_out = Store(data, device, validation=True)
        plain = Recipe(0, 0, 0, 0, recipe.others, recipe.slices, recipe.side)
        self.held_out = StackDrawing(held_out, plain, settings.batch, 10_000, plain=True)
        self._resume()

    # --- files ------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        """The file that a training goes on from."""
        return self.output / "checkpoint.pt"

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        remedy = "delete the file to start again"
        with damage_named(self.checkpoint, remedy, "this checkpoint cannot be used"):
            state: dict[str, Any] = read_tensors(self.checkpoint, remedy, self.device)
            self.net.load_state_dict(state["net"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.spent = int(state["step"]), float(state["spent"])

    def save(self) -> None:
        """Write the checkpoint and the averaged weights."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "spent": self.spent,
        }
        write_tensors(self.checkpoint, state)
        save_weights(self.average, self.output / "network.npz", self.facts())

    def facts(self) -> dict[str, Any]:
        """How the weights were made."""
        return {
            "settings": asdict(self.settings),
            "recipe": asdict(self.recipe),
            "steps": self.step,
            "seconds": round(self.spent, 1),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
        }

    def log(self, **values: Any) -> None:
        """One line in the log and on the screen."""
        line = json.dumps({"step": self.step, "seconds": round(self.spent, 1), **values})
        with (self.output / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        print(line, flush=True)

    # --- the loop ---------------------------------------------------------------------------------

    def rate(self) -> float:
        """The learning rate: a short rise, then a cosine to 1 % at the end of the time."""
        done = min(1.0, self.spent / self.settings.seconds)
        rise = min(1.0, (self.step + 1) / 100)
        return self.settings.lr * rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))

    def advance(self) -> Tensor:
        """One step; its loss."""
        with torch.no_grad():
            stacks = self.drawing.batch(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        x = stacks.features
        if self.device.type == "cuda":
            x = x.to(torch.bfloat16, memory_format=torch.channels_last_3d)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.net(x, stacks.prior)
        value = loss(logits, stacks)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            own = [p.detach() for p in self.net.parameters()]
            torch._foreach_lerp_(list(self.average.parameters()), own, 1 - decay)
        self.step += 1
        return value.detach()

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Dice of the averaged weights and of aligned interpolation, by number of slices."""
        rows: list[tuple[int, float, float]] = []
        for n in range(self.settings.validation):
            stacks = self.held_out.batch(n)
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"
            ):
                logits = self.average(stacks.features, stacks.prior)
            ours, theirs = dice_scores(logits, stacks)
            rows += list(zip(stacks.count.tolist(), ours.tolist(), theirs.tolist()))
        out: dict[str, Any] = {}
        for count in (1, 2, 3, 4, 5, 7):
            chosen = [(a, b) for c, a, b in rows if c == count]
            if chosen:
                ours_, theirs_ = np.mean(chosen, 0)
                out[f"n{count}"] = [round(float(ours_), 4), round(float(theirs_), 4)]
        ours_, theirs_ = np.mean([(a, b) for c, a, b in rows if c], 0)
        out["all"] = [round(float(ours_), 4), round(float(theirs_), 4)]
        return out

    def run(self) -> None:
        """Train until the time is spent."""
        saved = reported = validated = self.spent
        losses: list[Tensor] = []
        while self.spent < self.settings.seconds:
            start = time.perf_counter()
            losses.append(self.advance())
            if len(losses) % 8 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()
            self.spent += time.perf_counter() - start
            if self.spent - reported >= REPORT_EVERY:
                mean = float(torch.stack(losses).mean())
                self.log(loss=round(mean, 4), lr=round(self.rate(), 6))
                reported, losses = self.spent, []
            start = time.perf_counter()
            if self.spent - validated >= max(VALIDATE_EVERY, self.settings.seconds / 40):
                self.log(validation=self.validate())
                validated = self.spent
            if self.spent - saved >= CHECKPOINT_EVERY:
                self.save()
                saved = self.spent
            self.spent += time.perf_counter() - start
        self.save()
        self.log(validation=self.validate(), finished=True)


def save_weights(net: CompletionNet, path: Path, facts: dict[str, Any]) -> None:
    """Write weights in half precision, with how they were made.

    Args:
        net: The network.
        path: The file, ending in ".npz".
        facts: Anything that JSON can hold.
    """
    arrays = {
        name: value.detach().float().cpu().numpy().astype(np.float16)
        for name, value in net.state_dict().items()
    }
    facts = {**facts, "inputs": net.inputs, "widths": net.widths}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def train_by_arguments() -> None:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="file of prepare")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for kind in (TrainingSettings, Recipe):
        for one in fields(kind):
            given: Any = one.default
            if isinstance(given, tuple):
                parser.add_argument(f"--{one.name}", type=int, nargs="+", default=given)
            else:
                parser.add_argument(f"--{one.name}", type=type(given), default=given)
    options = vars(parser.parse_args())
    options["widths"] = tuple(options["widths"])
    settings = TrainingSettings(**{one.name: options[one.name] for one in fields(TrainingSettings)})
    recipe = Recipe(**{one.name: options[one.name] for one in fields(Recipe)})
    device = torch.device(options["device"])
    CompletionTraining(options["data"], options["output"], settings, recipe, device).run()


if __name__ == "__main__":
    train_by_arguments()
