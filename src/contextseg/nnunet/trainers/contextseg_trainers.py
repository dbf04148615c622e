"""Trainers of nnU-Net v2 that train by methods of ours; nnU-Net finds them by name.

    export nnUNet_extTrainer=$(python -m contextseg.nnunet)
    nnUNetv2_train 1 3d_fullres 0 -tr nnUNetTrainer_contextseg_CoLab

nnU-Net plans, preprocesses, augments, samples and validates; the loss, and what else a step does,
is the method's own code. Settings come from the environment variable `contextseg_settings`, such as
"context_classes=4 epochs=100", and are kept in the model's `plans.json`, by which nnU-Net builds
the network again to predict.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from contextseg.data.layouts import open_dataset
from contextseg.errors import ContextsegError, plural
from contextseg.methods import CoLab, Contexts, Supervised
from contextseg.methods.context import kmeans, nearest_centre, with_contexts
from contextseg.nnunet.bridge import (
    LENGTH,
    MethodNetwork,
    batch_of,
    network_plan,
    trainer_settings,
    validation_loss,
)

_KEY = "contextseg"  # of the settings in plans.json
_CLIP = 12  # nnU-Net's


class _MethodTrainer(nnUNetTrainer):
    """nnU-Net's trainer, whose step is a method's."""

    method: Any = Supervised
    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  as in nnU-Net
    ) -> None:
        settings = self.defaults | trainer_settings(self.method)
        plans[_KEY] = settings
        super().__init__(plans, configuration, fold, dataset_json, device)
        for name, attribute in LENGTH.items():
            if name in settings:
                setattr(self, attribute, settings[name])
        if "steps" in settings:  # nnU-Net's share: 50 of 250
            self.num_val_iterations_per_epoch = max(1, settings["steps"] // 5)
        self.steps_done = 0
        self.annotated: dict[str, list[bool]] = {}
        self._refuse()

    def _refuse(self) -> None:
        reasons = {
            "labels that are regions": self.label_manager.has_regions,
            "a cascade": self.is_cascaded,
            "several GPUs": self.is_ddp,
        }
        for what, there in reasons.items():
            if there:
                name = type(self).__name__
                remedy = "use nnUNetTrainer there, or another configuration on one GPU"
                raise ContextsegError(name, f"{what} cannot be trained by this method", remedy)

    def _do_i_compile(self) -> bool:
        return False  # gradients of gradients, hooks and forward mode do not compile

    @classmethod
    def build_network_architecture(  # nnU-Net's is static; both are called by the class
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The method as a network; nnU-Net builds its own inside.

        Args:
            plans_manager: nnU-Net's plans.
            configuration_manager: Its configuration.
            num_input_channels: Channels of the image.
            num_output_channels: K.
            enable_deep_supervision: Whether the network gives logits of several levels.

        Returns:
            The network.
        """
        settings = plans_manager.plans.get(_KEY, {})
        arguments = {name: value for name, value in settings.items() if name not in LENGTH}
        plan = network_plan(
            configuration_manager.configuration, num_input_channels, num_output_channels
        )

        def make(outputs: int) -> nn.Module:
            return get_network_from_plans(
                configuration_manager.network_arch_class_name,
                configuration_manager.network_arch_init_kwargs,
                configuration_manager.network_arch_init_kwargs_req_import,
                num_input_channels,
                outputs,
                allow_init=True,
                deep_supervision=enable_deep_supervision,
            )

        return MethodNetwork(cls.method(plan, **arguments), make, plan.strides)

    @property
    def plan(self) -> Any:
        """What the method knows of the configuration."""
        return network_plan(
            self.configuration_manager.configuration,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
        )

    def _build_loss(self) -> Any:
        """The loss that nnU-Net's validation logs; `train_step` takes the method's."""
        settings = self.plans_manager.plans[_KEY]
        return validation_loss(self.plan, self.label_manager.ignore_label, settings)

    @property
    def training_ignore(self) -> int | None:
        """The value of the ignore label in the batches that are trained on."""
        return self.label_manager.ignore_label

    def configure_optimizers(self) -> tuple[Any, Any]:
        """The method's optimisers; nnU-Net steps and saves the one of its network.

        Returns:
            The optimiser and nnU-Net's schedule for it.
        """
        groups = self.network.method.optimizers(self.initial_lr)
        self.others = {name: group for name, group in groups.items() if name != "net"}
        return groups["net"], PolyLRScheduler(groups["net"], self.initial_lr, self.num_epochs)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step by the method.

        Args:
            batch: nnU-Net's batch.

        Returns:
            The loss, by name.
        """
        items = batch_of(batch, self.plan, self.training_ignore, self.annotated, self.device)
        half = self.device.type == "cuda"
        loss = self._backward(items, half)
        if self._step_ahead(items, half) and self.network.method.relabels:
            if self.grad_scaler is not None:
                self.grad_scaler.update()  # each backward pass is unscaled once
            loss = self._backward(items, half)
        nn.utils.clip_grad_norm_(_parameters(self.optimizer), _CLIP)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        self.steps_done += 1
        return {"loss": loss.detach().cpu().numpy()}

    def _backward(self, items: Any, half: bool) -> Tensor:
        """The loss of a batch, whose gradients then lie in the parameters, unscaled."""
        for optimizer in (self.optimizer, *self.others.values()):
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.float16, enabled=half):
            terms = self.network.method(items)
        loss = torch.stack(list(terms.values())).sum()
        if self.grad_scaler is None:
            loss.backward()
        else:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
        return loss

    def _step_ahead(self, items: Any, half: bool) -> bool:
        """Step the optimisers whose gradients the look-ahead gives; whether one was due."""
        lr = self.optimizer.param_groups[0]["lr"]
        with torch.autocast(self.device.type, torch.float16, enabled=half, cache_enabled=False):
            ahead = self.network.method.lookahead(items, lr, self.steps_done, lambda values: None)
        for name, gradients in ahead.items():
            if not all(bool(g.isfinite().all()) for g in gradients):
                continue  # half precision overflowed; the next step will do
            parameters = _parameters(self.others[name])
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(parameters, _CLIP)
            self.others[name].step()
        return bool(ahead)

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, with the state of the method's other optimisers.

        Args:
            filename: The file.
        """
        super().save_checkpoint(filename)
        if self.disable_checkpointing:
            return
        content = torch.load(filename, map_location="cpu", weights_only=False)
        states = {name: optimizer.state_dict() for name, optimizer in self.others.items()}
        content[_KEY] = {"optimizers": states, "steps": self.steps_done}
        torch.save(content, filename)

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Go on from a checkpoint.

        Args:
            filename_or_checkpoint: The file, or its content.
        """
        super().load_checkpoint(filename_or_checkpoint)
        content = filename_or_checkpoint
        if isinstance(content, str):
            content = torch.load(content, map_location=self.device, weights_only=False)
        for name, state in content[_KEY]["optimizers"].items():
            self.others[name].load_state_dict(state)
        self.steps_done = content[_KEY]["steps"]


class nnUNetTrainer_contextseg_CoLab(_MethodTrainer):
    """CoLab: context classes of the background, learnt with the segmentation (`methods.colab`)."""

    method = CoLab


class nnUNetTrainer_contextseg_context(_MethodTrainer):
    """The background split into classes by intensity, by k-means over the training cases."""

    method = Contexts

    @property
    def training_ignore(self) -> int | None:
        """Beyond the context classes, whose first has nnU-Net's value of the ignore label."""
        return None if self.label_manager.ignore_label is None else _Split.IGNORED

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders, of batches with context labels.

        Returns:
            The loaders of training and validation.
        """
        self.centres = self._centres()
        return super().get_dataloaders()

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """nnU-Net's augmentation, after the split of the background.

        Args:
            *args: As nnU-Net's.
            **kwargs: As nnU-Net's.

        Returns:
            The transforms.
        """
        composed = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        classes = self.label_manager.num_segmentation_heads
        composed.transforms.insert(
            0, _Split(self.centres, classes, self.label_manager.ignore_label)
        )
        return composed

    def _centres(self) -> np.ndarray:
        """The centres of k-means, over voxels of the training cases that are not zero."""
        names, _ = self.do_split()
        dataset = self.dataset_class(self.preprocessed_dataset_folder, names)
        draw = np.random.default_rng(0)
        sample = []
        for name in names:
            image, label, *_ = dataset.load_case(name)
            image, label = np.asarray(image[:]), np.asarray(label[:])[0]
            voxels = np.flatnonzero(label >= 0)
            chosen = draw.choice(voxels, min(len(voxels), 10_000), replace=False)
            sample.append(image.reshape(len(image), -1)[:, chosen].T)
        contexts = self.plans_manager.plans[_KEY].get("context_classes", 2)
        centres = kmeans(np.concatenate(sample), contexts)
        self.print_to_log_file(f"contextseg: centres of the background {centres.tolist()}")
        return centres


class _Split:
    """A transform that splits the background by the nearest centre."""

    IGNORED = 1000

    def __init__(self, centres: np.ndarray, classes: int, ignore: int | None) -> None:
        self.centres, self.classes, self.ignore = centres, classes, ignore

    def __call__(self, **data: Any) -> dict[str, Any]:
        label = data["segmentation"][0].numpy()
        split = with_contexts(
            np.where(label == self.ignore, -self.IGNORED, label),
            nearest_centre(data["image"].numpy(), self.centres),
            self.classes,
        )
        split[split == -self.IGNORED] = self.IGNORED
        data["segmentation"] = torch.from_numpy(split)[None]
        return data


class nnUNetTrainer_contextseg_presence(_MethodTrainer):
    """A second loss on a head that tells which classes are in a patch (`methods.presence`)."""

    method = Supervised
    defaults: ClassVar = {"presence_weight": 0.5}


class nnUNetTrainer_contextseg_partial(_MethodTrainer):
    """Cases in which only some classes are annotated; the others are unknown there.

    `labelsTr/CASE.json` in nnUNet_raw holds {"annotated": [...]}, or `annotated.json` all of them.
    """

    method = Supervised

    def on_train_start(self) -> None:
        """Read which classes are annotated, then start."""
        self.annotated = self._annotated()
        partly = sum(not all(flags) for flags in self.annotated.values())
        self.print_to_log_file(f"contextseg: annotated in part: {plural(partly, 'case')}")
        super().on_train_start()

    def _annotated(self) -> dict[str, list[bool]]:
        root = os.environ.get("nnUNet_raw", "")  # noqa: SIM112  nnU-Net's name
        name = self.plans_manager.dataset_name
        folder = os.path.join(root, name)
        if not root or not os.path.isdir(folder):
            what = "the raw data set is not there, which says what is annotated in each case"
            raise ContextsegError(folder or "nnUNet_raw", what, "set nnUNet_raw to its folder")
        data = open_dataset(folder)
        order = sorted(range(len(data.classes)), key=lambda k: data.values[k])
        titles = [data.classes[k] for k in order]
        return {
            case.name: [k == 0 or title in case.annotated for k, title in enumerate(titles)]
            for case in data.train
            if case.annotated is not None
        }


def _parameters(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
