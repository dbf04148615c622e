"""The chain without a person on real scans: run the studies, and write docs/chain.md.

    python docs/measure_chain.py DATA OUTPUT [SET=SEED,SEED ...]

DATA holds the data sets `sarcoma` (an nnU-Net raw data set with `split.json`) and `headneck` (a
folder of images and labels with `cases.json`). Without a SET both are studied, with seeds 0, 1 and
2. A study that was stopped goes on; one that is finished only writes its page again.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contextseg as cs
from contextseg.disk import read_json, write_json

DOCS = Path(__file__).parent
SMALL = {"batch_size": 4, "base_width": 8}
ORGANS = ("brainstem", "spinal_cord", "right_parotid", "left_parotid", "mandible")
TRAIN, TEST = 30, 15
"""Scans of head and neck: the first with all organs of each part of the split."""


@dataclass(frozen=True)
class Chain:
    """A study of the chain.

    Attributes:
        title: Of its section.
        about: What the scans are.
        slices: Labelled in a case before the next is taken.
        steps: Of training, in each round.
        settings: Of every training.
    """

    title: str
    about: str
    slices: int
    steps: int
    settings: dict[str, Any]


CHAINS = {
    "sarcoma": Chain(
        "Soft-tissue sarcoma",
        "T1 MR, 26 training and 10 locked test cases (Vallières et al. 2015).",
        8,
        200,
        {
            **SMALL,
            "lr": 0.003,
            "optimizer": "adamw",
            "device": "cpu",
            "spacing_mm": (6, 6, 6),
            "patch_vox": (16, 16, 16),
            "prediction.mirror": False,
        },
    ),
    "headneck": Chain(
        "Organs of head and neck",
        f"Planning CT, {TRAIN} training and {TEST} locked test cases, five organs each "
        "(OpenKBP, Babier et al. 2021).",
        16,
        1000,
        {
            **SMALL,
            "device": "cpu",
            "spacing_mm": (5, 5, 5),
            "patch_vox": (24, 24, 24),
            "prediction.mirror": False,
        },
    ),
}


def _sarcoma(source: Path, folder: Path) -> None:
    """The data set with its test split locked, the files as links."""
    split = read_json(source / "split.json")
    for part in ("imagesTr", "labelsTr"):
        for path in (source / part).glob("*.nii.gz"):
            _link(path, folder / part / path.name)
    shutil.copyfile(source / "dataset.json", folder / "dataset.json")
    cases = {name: {"split": part} for part in ("train", "test") for name in split[part]}
    write_json(folder / "cases.json", {"cases": cases})


def _headneck(source: Path, folder: Path) -> None:
    """The first scans of which all organs are labelled, the files as links."""
    table = read_json(source / "cases.json")
    left = {"train": TRAIN, "test": TEST}
    chosen = {}
    for name, entry in sorted(table["cases"].items()):
        if left[entry["split"]] and set(ORGANS) <= set(entry["annotated"]):
            left[entry["split"]] -= 1
            chosen[name] = entry
            for part in ("images", "labels"):
                _link(source / part / f"{name}.nii.gz", folder / part / f"{name}.nii.gz")
    write_json(folder / "cases.json", table | {"cases": chosen})


PREPARE = {"sarcoma": _sarcoma, "headneck": _headneck}


def _link(path: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        os.symlink(path.resolve(), link)


def study(name: str, data: Path, output: Path, seeds: list[int]) -> tuple[str, str]:
    """Do what is left of a study.

    Args:
        name: One of `CHAINS`.
        data: The folder of data sets.
        output: Where studies are kept.
        seeds: Of the repetitions.

    Returns:
        Its section of the page, and the machine.
    """
    chain = CHAINS[name]
    scans = output / name
    if not (scans / "cases.json").exists():
        PREPARE[name](data / name, scans)
    folder = output / f"{name}-chain"
    cs.simulate(
        scans,
        folder,
        chain=True,
        classes=ORGANS if name == "headneck" else (),
        slices=chain.slices,
        budgets=(0.075, 0.15),
        seeds=seeds,
        steps=chain.steps,
        **chain.settings,
    )
    shutil.copyfile(folder / "chain.svg", DOCS / f"chain-{name}.svg")
    _, text = (folder / "summary.md").read_text(encoding="utf-8").split("\n\n", 1)
    text = text.replace("(chain.svg)", f"(chain-{name}.svg)").replace("## ", "### ")
    machine = read_json(folder / "study.json")["provenance"]["machine"]
    return f"## {chain.title}\n\n{chain.about}\n\n{text}", machine


def main(data: Path, output: Path, asked: dict[str, list[int]]) -> None:
    """Do the studies that are left, and write the page."""
    sys.path.insert(0, str(DOCS))
    from wrap import wrapped

    studies = [study(name, data, output, seeds) for name, seeds in asked.items()]
    note = (
        "A simulated annotator with a budget of slices drives `contextseg project` on real scans: "
        "it labels, has the rest filled, trains, and labels what is worst. Fills are of shapes "
        "alone, since the packaged network has seen labels of these data sets. **A small trial**: "
        "a tiny network at coarse spacing, short trainings and few patients, on "
        f"{studies[0][1]}. Written by `docs/measure_chain.py`."
    )
    page = "\n\n".join(["# The chain without a person", note, *(text for text, _ in studies)])
    (DOCS / "chain.md").write_text(wrapped(page), encoding="utf-8")


if __name__ == "__main__":
    words = dict(word.split("=") for word in sys.argv[3:])
    chosen = {name: words.get(name, "0,1,2") for name in CHAINS if not words or name in words}
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        {name: [int(seed) for seed in text.split(",")] for name, text in chosen.items()},
    )
