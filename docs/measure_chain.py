"""The chain without a person on soft-tissue sarcoma: run the study, and write docs/chain.md.

    python docs/measure_chain.py shared/data/sarcoma OUTPUT [STEPS=SEED,SEED ...]

The folder is an nnU-Net raw data set with `split.json` ({"train": [...], "test": [...]}). A study
that was stopped goes on; one that is finished only writes its page again.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import contextseg as cs
from contextseg.disk import read_json, write_json

DOCS = Path(__file__).parent
SETTINGS = {
    "spacing_mm": (6, 6, 6),
    "patch_vox": (16, 16, 16),
    "batch_size": 4,
    "base_width": 8,
    "lr": 0.003,
    "optimizer": "adamw",
    "device": "cpu",
    "prediction.mirror": False,
}


def with_split(source: Path, folder: Path) -> Path:
    """The data set with its test split locked, the files as links."""
    split = read_json(source / "split.json")
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for path in (source / part).glob("*.nii.gz"):
            if not (folder / part / path.name).exists():
                os.symlink(path.resolve(), folder / part / path.name)
    shutil.copyfile(source / "dataset.json", folder / "dataset.json")
    cases = {name: {"split": part} for part in ("train", "test") for name in split[part]}
    write_json(folder / "cases.json", {"cases": cases})
    return folder


def main(source: Path, output: Path, seeds: dict[int, list[int]]) -> None:
    """Do the studies that are left, and write the page."""
    sys.path.insert(0, str(DOCS))
    from wrap import wrapped

    data = with_split(source, output / "sarcoma")
    parts = []
    for steps, numbers in seeds.items():
        study = output / f"sarcoma-chain-{steps}"
        cs.simulate(
            data,
            study,
            chain=True,
            slices=8,
            budgets=(0.075, 0.15),
            seeds=numbers,
            steps=steps,
            **SETTINGS,
        )
        shutil.copyfile(study / "chain.svg", DOCS / f"chain-{steps}.svg")
        _, text = (study / "summary.md").read_text(encoding="utf-8").split("\n\n", 1)
        text = text.replace("(chain.svg)", f"(chain-{steps}.svg)").replace("## ", "### ")
        parts.append(f"## {steps} steps of training a round\n\n{text}")
    machine = read_json(study / "study.json")["provenance"]["machine"]
    note = (
        "Soft-tissue sarcoma, T1 MR, 26 training and 10 locked test cases "
        "(Vallières et al. 2015). **A small trial**: a tiny network at 6 mm, short trainings "
        f"and few patients, on {machine}. Written by `docs/measure_chain.py`."
    )
    page = "\n\n".join(["# The chain without a person", note, *parts])
    (DOCS / "chain.md").write_text(wrapped(page), encoding="utf-8")


if __name__ == "__main__":
    chosen = dict(word.split("=") for word in sys.argv[3:]) or {"80": "0,1,2"}
    seeds = {int(steps): [int(n) for n in text.split(",")] for steps, text in chosen.items()}
    main(Path(sys.argv[1]), Path(sys.argv[2]), seeds)
