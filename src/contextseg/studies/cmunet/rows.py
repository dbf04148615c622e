"""The rows of the CMU-Net paper's table as methods and settings, and its published numbers.

Moseley, Wang, Imran: Context-aware multitasking for medical image segmentation. Where the paper is
silent, docs/cmu-net.md says what we decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from contextseg.errors import ContextsegError, did_you_mean
from contextseg.settings import Settings

EPOCHS = 100
"""The paper's epochs; an epoch is every training slice once."""
RESTART = 10
"""Epochs between two restarts of the learning rate."""
RUNS = 10
"""The paper's runs of each row."""
TRIAL_EPOCHS = 2
"""Epochs of a trial."""

NETWORK = {
    "dims": "2",
    "patch_vox": "256,256",
    "base_width": "16",
    "max_levels": "5",
    "net": "cmunet",
}
"""The paper's network and slices, of every row."""

TRAINING = {
    "loss": "soft_dice",
    "smooth": "1",
    "batch_dice": "false",
    "every_slice": "true",
    "augmentation.strength": "0",
    "keep": "best",
    "prediction.mirror": "false",
}
"""How the paper trains, as we read it: of every row but "ours"."""

SPACING_MM = "1,1.5,1.5"
"""Spacing of a liver: 512 x 512 pixels become about 256 x 256. The paper does not give any."""

_PLAIN = {"batch_size": "10", "lr": "0.01"}
_JOINT = {"batch_size": "6", "lr": "0.001"}


@dataclass(frozen=True)
class TableRow:
    """A row of the table.

    Attributes:
        name: Its name.
        method: Method of the library.
        settings: What it sets beside `NETWORK`, by name.
        origin: "paper", "future work" (which the paper names and did not do), or "ours".
        published: Dice and its s.d., Hausdorff distance and its s.d., over the paper's 10 runs; ()
            where the paper has none.
    """

    name: str
    method: str
    settings: Mapping[str, str]
    origin: str
    published: tuple[float, ...] = ()

    @property
    def best(self) -> bool:
        """Whether its best validation epoch is deployed, and its last one reported beside it."""
        return self.settings.get("keep") == "best"


ROWS: dict[str, TableRow] = {
    row.name: row
    for row in (
        TableRow(
            "U-Net",
            "cmu",
            {**TRAINING, **_PLAIN, "presence_weight": "0", "gate": "false"},
            "paper",
            (0.8567, 0.0351, 15.77, 2.20),
        ),
        TableRow(
            "pretrained",
            "cmu-pretrain",
            {**TRAINING, **_PLAIN},
            "paper",
            (0.8583, 0.0328, 15.74, 4.20),
        ),
        TableRow(
            "CMU-Net",
            "cmu",
            {**TRAINING, **_JOINT, "gate": "false"},
            "paper",
            (0.8984, 0.018, 12.21, 4.25),
        ),
        TableRow(
            "five-poolings",
            "cmu",
            {**TRAINING, **_JOINT, "gate": "false", "net": "cmunet-five-poolings"},
            "paper, read the other way",
        ),
        TableRow("frozen", "cmu-pretrain", {**TRAINING, **_PLAIN, "freeze": "true"}, "future work"),
        TableRow(
            "pretrained+joint",
            "cmu-pretrain",
            {**TRAINING, **_JOINT, "presence_weight": "0.5"},
            "future work",
        ),
        TableRow(
            "residual",
            "cmu",
            {**TRAINING, **_JOINT, "gate": "false", "net": "cmunet-residual"},
            "future work",
        ),
        TableRow("ours", "cmu", {**_PLAIN, "check_every": "0"}, "ours"),
    )
}
"""The rows by name: the paper's three first."""


@dataclass(frozen=True)
class Slices:
    """How many slices there are, on the grid of the network.

    Attributes:
        train: Of the training cases.
        validation: Of the validation cases.
    """

    train: int
    validation: int


@dataclass(frozen=True)
class Asked:
    """What somebody asks for.

    Attributes:
        rows: The rows.
        epochs: Epochs of every training.
        seeds: Seeds of the runs.
        settings: `name=value` words for every row, after the paper's.
    """

    rows: tuple[TableRow, ...]
    epochs: int
    seeds: tuple[int, ...]
    settings: tuple[str, ...] = field(default=())


def parse_asked(
    rows: str, epochs: int, seeds: str, trial: bool, settings: Sequence[str] = ()
) -> Asked:
    """What the words of a command line ask for.

    Args:
        rows: Names of rows with commas between; "" for all.
        epochs: Epochs; 0 for the paper's 100, or a trial's 2.
        seeds: Numbers with commas between; "" for the paper's ten, or a trial's one.
        trial: Whether it is a trial.
        settings: `name=value` words for every row.

    Returns:
        The same, checked.

    Raises:
        ContextsegError: There is no such row, a number is none, or a setting is the study's own.

    Example:
        >>> asked = parse_asked("U-Net,CMU-Net", 0, "", trial=True)
        >>> [row.name for row in asked.rows], asked.epochs, asked.seeds
        (['U-Net', 'CMU-Net'], 2, (0,))
    """
    names = [name.strip() for name in rows.split(",") if name.strip()] or list(ROWS)
    for name in names:
        if name not in ROWS:
            raise ContextsegError(
                f"--rows {name}", "there is no such row", did_you_mean(name, ROWS)
            )
    if epochs < 0:
        raise ContextsegError(f"--epochs {epochs}", "no length of training", "give 1 or more")
    words = [part.strip() for part in seeds.split(",") if part.strip()]
    if wrong := [word for word in words if not word.isdecimal()]:
        raise ContextsegError(f"--seeds {seeds}", f"{wrong[0]} is no number", "write 0,1,2")
    for word in settings:
        name = word.partition("=")[0].strip().rpartition(".")[2]
        if name in _OWN:
            raise ContextsegError(f"--set {word}", "the number of slices decides this", _OWN[name])
    numbers = tuple(dict.fromkeys(int(word) for word in words))
    return Asked(
        tuple(ROWS[name] for name in dict.fromkeys(names)),
        epochs or (TRIAL_EPOCHS if trial else EPOCHS),
        numbers or (tuple(range(1 if trial else RUNS))),
        tuple(settings),
    )


_OWN = {
    "steps": "give --epochs",
    "check_every": "leave it out: it is once an epoch",
    "check_batches": "leave it out: it is every slice of the validation cases",
    "cycles": f"leave it out: it is one for each {RESTART} epochs",
}
"""Settings that follow from the number of slices, and what to do instead."""


def planning_of(row: TableRow, asked: Asked) -> dict[str, object]:
    """The settings of the plan of a row.

    Args:
        row: The row.
        asked: What was asked for.

    Returns:
        Arguments of `data.plan.make_plan`, by name.
    """
    return _settings(row, asked).planning


def _settings(row: TableRow, asked: Asked) -> Settings:
    words = [f"{name}={value}" for name, value in {**NETWORK, **row.settings}.items()]
    return Settings("", row.method).set([*words, *asked.settings])


def method_word(row: TableRow, asked: Asked, slices: Slices) -> str:
    """A row as a method of `compare`, with its length in steps.

    Args:
        row: The row.
        asked: What was asked for.
        slices: How many slices there are.

    Returns:
        "method:setting=value,setting=value".

    Raises:
        ContextsegError: A setting is unknown.

    Example:
        100 epochs of 1664 slices in batches of 10:

        >>> word = method_word(ROWS["U-Net"], parse_asked("", 0, "", False), Slices(1664, 298))
        >>> [part for part in word.split(",") if part.startswith(("steps", "check", "cycles"))]
        ['steps=16640', 'cycles=10', 'check_every=167', 'check_batches=30']
    """
    batch = _settings(row, asked).planning["batch_size"]
    words = {**NETWORK, **row.settings}
    words |= {
        "steps": str(ceil(asked.epochs * slices.train / batch)),
        "cycles": str(max(1, round(asked.epochs / RESTART))),
    }
    if row.best:
        words |= {
            "check_every": str(ceil(slices.train / batch)),
            "check_batches": str(ceil(slices.validation / batch)),
        }
    given = [f"{name}={value}" for name, value in words.items()]
    return f"{row.method}:{','.join([*given, *asked.settings])}"
