"""At home in nnU-Net v2: its trained models as predictors of ours, and our methods as its trainers.

`model` reads the folder that `nnUNetv2_train` wrote, without nnU-Net being installed. The folder
`trainers` holds the trainers that nnU-Net finds by `nnUNet_extTrainer`:

    export nnUNet_extTrainer=$(python -m contextseg.nnunet)
    nnUNetv2_train 1 3d_fullres 0 -tr nnUNetTrainer_contextseg_CoLab
"""

from __future__ import annotations

from pathlib import Path

from contextseg.nnunet.model import holds_model, is_nnunet_model, open_nnunet

__all__ = ["holds_model", "is_nnunet_model", "open_nnunet", "trainers_folder"]


def trainers_folder() -> Path:
    """The folder of the trainers, for `nnUNet_extTrainer`."""
    return Path(__file__).with_name("trainers")
