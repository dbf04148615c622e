"""Print the folder of the trainers, for `nnUNet_extTrainer`."""

from __future__ import annotations

from pathlib import Path

print(Path(__file__).with_name("trainers"))
