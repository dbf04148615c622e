"""Print the folder of the trainers, for `nnUNet_extTrainer`."""

from __future__ import annotations

from contextseg.nnunet import trainers_folder

print(trainers_folder())
