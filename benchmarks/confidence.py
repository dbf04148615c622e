"""Does the Dice that the packaged network expects come true? Fitted and checked on held-out scans.

    python benchmarks/confidence.py gather DATA ROWS.jsonl [--cases test] [--most 3]
    python benchmarks/confidence.py fit ROWS.jsonl
    python benchmarks/confidence.py write ROWS.jsonl [--output docs/pretrained-confidence]

`gather` fills structures of DATA (as `benchmarks/pretrained.py`) from one to five slices,
and appends for each slice that the network filled what it knew and the Dice that came out; a second
call goes on. `fit` prints the coefficients of `contextseg.propagation.expected`, of the rows of
`--cases validation`, on which nothing is reported. `write` makes a table and a figure of the rows
of `--cases test`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contextseg.propagation import open_completion
from contextseg.propagation.expected import (
    BETWEEN_LABELLED,
    BEYOND_LABELLED,
    between_features,
    beyond_features,
    corrected_dice,
    promised_dice,
)
from contextseg.propagation.network.completing import complete_stack
from contextseg.propagation.pretrained import ENOUGH_SLICES, CompletionModel, keep_area
from contextseg.propagation.shapes import ShapePrior
from pretrained import Example, dice, examples, in_turn, labelled, never_trained

SETTINGS = ((1, "largest"), (2, "inner"), (2, "ends"), (3, "inner"), (3, "ends"), (5, "ends"))
PLACES = {"between": BETWEEN_LABELLED, "beyond": BEYOND_LABELLED}


def slices_of(
    example: Example, count: int, where: str, model: CompletionModel
) -> list[dict[str, Any]]:
    """What was known of each slice that the network filled, and the Dice that came out."""
    masks = {i: label == 1 for i, label in labelled(example.mask, count, where).slices.items()}
    image = np.asarray(example.scan.array)[0]
    spacing_mm = list(example.scan.spacing_mm)
    shown = {i: mask.astype(np.int16) for i, mask in masks.items()}
    prior = ShapePrior(shown, [1], spacing_mm[1:], spacing_mm[0])
    planes = {i: prior.distance(1, i) for i in range(len(image))}
    shapes = {i: plane for i, plane in planes.items() if plane is not None}
    bounded = where == "ends"
    logits = complete_stack(model.net, image, masks, spacing_mm, None, shapes, bounded)
    rows = []
    for i, plane in enumerate(logits):
        if i in masks:
            continue
        place = "between" if i in shapes else "beyond"
        if i in shapes:
            prior_plane = prior.class_log_odds(1, i)
            assert prior_plane is not None
            plane = plane + prior_plane
            if count >= ENOUGH_SLICES:
                keep_area(plane, int((prior_plane > 0).sum()))
            features = between_features(plane, prior_plane)
        else:
            features = beyond_features(plane)
        if features is not None:
            got = dice(plane > 0, example.mask[i])
            promised = promised_dice(plane)
            rows.append({"place": place, "features": features, "promised": promised, "dice": got})
    return rows


def gather(data: Path, path: Path, cases: str, most: int) -> None:
    model = open_completion()
    known = read_rows(path) if path.exists() else []
    done = {(r["case"], r["group"], r["slices"], r["where"]) for r in known}
    with path.open("a", encoding="utf-8") as stream:
        for example in in_turn([e for e in examples(data, cases, most) if e.mask.any()]):
            for count, where in SETTINGS:
                key = (example.case, example.group, count, where)
                if key in done:
                    continue
                row = dict(zip(("case", "group", "slices", "where"), key))
                row["rows"] = slices_of(example, count, where, model)
                stream.write(json.dumps(row) + "\n")
                stream.flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def of_place(table: list[dict[str, Any]], place: str) -> list[tuple[dict[str, Any], str, str]]:
    """(slice, structure, case) of one place."""
    return [(s, r["group"], r["case"]) for r in table for s in r["rows"] if s["place"] == place]


def fit(table: list[dict[str, Any]], place: str) -> np.ndarray:
    """Coefficients of a logistic regression in which every structure counts alike.

    Structures that the network was never trained on are left out of choices too.
    """
    rows = [row for row in of_place(table, place) if not never_trained(row[1])]
    x = np.array([s["features"] for s, _, _ in rows])
    y = np.array([s["dice"] for s, _, _ in rows])
    count = Counter(group for _, group, _ in rows)
    weight = np.array([1 / count[group] for _, group, _ in rows])
    weight *= len(weight) / weight.sum()
    b = np.zeros(x.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-x @ b))
        curvature = (x * (weight * p * (1 - p))[:, None]).T @ x + np.eye(len(b))
        b = b + np.linalg.solve(curvature, x.T @ (weight * (y - p)) - b)
    return b


def bins(expected: np.ndarray, got: np.ndarray, count: int = 10) -> list[tuple[int, float, float]]:
    """Of each tenth of what was expected: slices, mean expectation, mean of what came out."""
    number = np.minimum((expected * count).astype(int), count - 1)
    held = [k for k in range(count) if (number == k).any()]
    return [
        (int((n := number == k).sum()), float(expected[n].mean()), float(got[n].mean()))
        for k in held
    ]


def calibration(parts: list[tuple[int, float, float]]) -> float:
    """The expected calibration error."""
    total = sum(n for n, _, _ in parts)
    return sum(n * abs(e - g) for n, e, g in parts) / total


def write(table: list[dict[str, Any]], output: Path) -> None:
    """The table and the figure."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "contextseg"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(7.2, 3.4), sharey=True)
    cases = len({row["case"] for row in table})
    structures = len({row["group"] for row in table})
    lines = [
        "# Does the expected Dice come true?",
        "",
        "Written by `benchmarks/confidence.py`: slices that the packaged network filled in",
        f"{cases} test scans, {structures} kinds of structure, from one to five labelled slices.",
        "Promised is the Dice that the network's probabilities give by themselves; expected is",
        "what `class_confidence` says, corrected on other cases. ECE is the expected calibration",
        "error over ten bins; MAE the mean difference from what came out in a slice.",
        "",
        "| slices | number | Dice | promised | ECE | MAE | expected | ECE | MAE |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for axis, (place, coefficients) in zip(axes, PLACES.items()):
        rows = of_place(table, place)
        got = np.array([s["dice"] for s, _, _ in rows])
        promised = np.array([s["promised"] for s, _, _ in rows])
        expected = np.array([corrected_dice(s["features"], coefficients) for s, _, _ in rows])
        cells = [f"{place} labelled slices", str(len(rows)), f"{got.mean():.3f}"]
        for values, name, colour in ((promised, "promised", "0.6"), (expected, "expected", "C0")):
            parts = bins(values, got)
            cells += [f"{values.mean():.3f}", f"{calibration(parts):.3f}"]
            cells += [f"{np.abs(values - got).mean():.3f}"]
            axis.plot(
                [e for _, e, _ in parts], [g for _, _, g in parts], "o-", c=colour, label=name
            )
        lines.append("| " + " | ".join(cells) + " |")
        axis.plot([0, 1], [0, 1], ":", c="0.3", lw=1)
        axis.set(title=f"{place} labelled slices", xlabel="Dice expected", xlim=(0, 1), ylim=(0, 1))
    axes[0].set_ylabel("Dice that came out")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(output.with_suffix(".svg"), metadata={"Date": None})
    picture = output.with_suffix(".svg").name
    lines += ["", f"![What was expected against what came out]({picture})", ""]
    output.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    gathering = verbs.add_parser("gather")
    gathering.add_argument("data", type=Path)
    gathering.add_argument("rows", type=Path)
    gathering.add_argument("--cases", choices=("test", "validation"), default="test")
    gathering.add_argument("--most", type=int, default=1000, help="cases of each data set")
    for verb in ("fit", "write"):
        verbs.add_parser(verb).add_argument("rows", type=Path)
    writing = verbs.choices["write"]
    writing.add_argument("--output", type=Path, default=Path("docs/pretrained-confidence"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.verb == "gather":
        gather(options.data, options.rows, options.cases, options.most)
    elif options.verb == "fit":
        for place in PLACES:
            print(place, *np.round(fit(read_rows(options.rows), place), 3))
    else:
        write(read_rows(options.rows), options.output)


if __name__ == "__main__":
    main()
