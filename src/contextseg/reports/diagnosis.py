"""The page of a diagnosis: whether false positives are a run's trouble and contexts would help."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from contextseg.disk import write_text
from contextseg.errors import plural
from contextseg.metrics import DSC, FP_FAR, FP_NEAR, METRICS, PRC, QUANTITIES, SEN
from contextseg.reports.contexts import (
    ERRORS,
    PREDICTED,
    SOFT,
    TISSUE_TITLES,
    DiagnosisArrays,
    DiagnosisFacts,
    colour_of,
    distance_chart,
    grouped,
    intensity_chart,
    learning_charts,
    logit_charts,
    overlap_chart,
    panels,
    shown_splits,
)
from contextseg.reports.markup import (
    cards_html,
    charts_html,
    page_html,
    provenance_html,
    row_name,
    sentence,
    table_html,
)
from contextseg.reports.numbers import number
from contextseg.reports.pictures import KEY
from contextseg.reports.planes import NEAR_MM

ALL = {**TISSUE_TITLES, "background": "All background"}
OVERLAPS = (DSC, SEN, PRC)
LOGITS = (
    "All ROI classes count as one. Margin: the largest logit of the ROI minus that of the "
    "background (its context classes folded in as the run predicts, unless it says otherwise "
    "below); above 0 a voxel is called ROI. Mean ± standard deviation over the voxels of all cases "
    "together. Shift: the mean on the other cases minus that on training cases. The CoLab paper’s "
    "finding is that on unseen cases the margins of background spread over the boundary, and those "
    "of the ROI less. In the charts each place where a voxel lies is painted, darker for more "
    "voxels (logarithmic); above the dashed line is called ROI."
)
RULE = (
    "The rule of thumb is the CoLab paper’s: context labels are for over-segmentation; two "
    "classes where false positives lie far from the ROI, four where they lie next to it. The "
    "thresholds are contextseg’s own (contextseg.studies.diagnose.advice). Everything was "
    "measured on preprocessed cases, before any post-processing."
)
CHARTS = (
    "Mean and standard deviation over cases, and each case. Beside it the mean volume of false "
    "positives in a case, by the distance from the nearest voxel of the ROI; in a case without "
    "a ROI all are in the last bin."
)
NEARNESS = (
    "M: how much the context of a voxel matters, from 0 (dark) to 1 (bright); where it is 0 a "
    "voxel is trained as plain background. "
)
CONTEXT = (
    "Colours lie on the background: the likeliest context of each voxel, and the probability of "
    "a context, from 0 (dark) to 1 (bright), at the end of the training. Shares and intensities "
    "are those of background voxels in the body, of all these cases, each counted by its "
    "probability of the context in training."
)
OWN = (
    f"“{PREDICTED}” is what f itself predicts: the likeliest of its context classes, ROI classes "
    "left out (the paper’s Fig. 8 shows it on training cases: --cases train). "
)
NO_ADVICE = (
    "No advice: it takes cases that the run kept for validation (--fold 0). Nothing may be chosen "
    "by test cases, and training cases do not show what happens on others."
)
PAPER_AXES = (
    "The axes are the paper’s: the largest logit of a ROI class against the largest of all other "
    "channels, and what is called ROI beats each of them alone. The run predicts by "
)
LEARNING = (
    "The middle slice of the first training patch, as it was drawn (turned or mirrored, "
    "perhaps), and its likeliest context at growing steps of the training; white where all "
    "contexts are equally likely."
)
DIAGNOSIS_VIEW = (
    f"Near: within {NEAR_MM:g} mm of the ROI, also across slices; the others are far. The "
    "patient’s right (R) is at the left of the axial and coronal planes, the front (A) at the "
    "left of the sagittal. Grey values: the 1st to 99th percentile of the preprocessed scan."
)


def write_diagnosis(
    path: str | Path, facts: DiagnosisFacts, arrays: DiagnosisArrays, provenance: Mapping[str, Any]
) -> None:
    """Write the page of a diagnosis: one self-contained HTML file.

    It is written atomically, and equal input gives equal bytes.

    Args:
        path: The file.
        facts: What `contextseg diagnose` writes to diagnosis.json.
        arrays: What it writes to diagnosis.npz.
        provenance: Nested facts, shown folded up.

    Raises:
        ContextsegError: The page cannot be written.
    """
    charts = {
        "Overlap with the reference": overlap_chart(facts),
        "False positives by distance": distance_chart(facts),
    }
    sections = {
        "Advice": _cards(facts) + _advice(facts) + sentence(RULE),
        "Logits": _margin_table(facts)
        + sentence(LOGITS + _axes(facts))
        + charts_html(logit_charts(facts, arrays)),
        "False positives": charts_html(charts) + sentence(CHARTS) + _cases(facts),
        "Contexts" if facts["context_classes"] > 1 else "A case": _pictures(facts, arrays),
        "Provenance": provenance_html(provenance),
    }
    title = f"{facts['dataset']}: diagnosis of {facts['method']}"
    write_text(path, page_html(title, sections))


def diagnosis_text(facts: DiagnosisFacts) -> str:
    """The diagnosis for a terminal.

    Args:
        facts: What `contextseg diagnose` writes to diagnosis.json.

    Returns:
        The text.
    """
    counted = " and ".join(f"{len(facts[split]['cases'])} {split}" for split in facts["splits"])
    lines = [f"{facts['dataset']}, {facts['method']}: {counted} cases"]

    def block(heading: str, rows: Mapping[str, list[str]]) -> None:
        lines.extend(["", f"{heading:36}" + "".join(f"{split:>24}" for split in facts["splits"])])
        lines.extend(
            f"  {name:34}" + "".join(f"{cell:>24}" for cell in cells)
            for name, cells in rows.items()
        )

    margins = {
        name: [_mean_sd(facts[s]["tissues"][tissue], 2) for s in facts["splits"]]
        for tissue, name in ALL.items()
    }
    block("Margin, z_roi - z_background", margins)
    called = {
        name: [_called(facts[s]["tissues"][tissue]) for s in facts["splits"]]
        for tissue, name in ALL.items()
    }
    block("Voxels called ROI", called)
    block(
        "Mean over cases",
        {METRICS[c].title: [_mean_sd(facts[s][c], 3) for s in facts["splits"]] for c in OVERLAPS},
    )
    false = {
        kind.capitalize(): [_false(facts[s], kind) for s in facts["splits"]]
        for kind in ("near", "far")
    }
    block("False positives, of the prediction", false)
    notes = [f"But: {note}" for note in facts["advice"]["notes"]] if facts["advice"] else []
    lines += ["", _recommended(facts), *notes]
    return "\n".join(lines)


# --- words ----------------------------------------------------------------------------------------


def _value(value: float | None) -> float:
    return float("nan") if value is None else value


def _mean_sd(spread: Mapping[str, Any], digits: int) -> str:
    """Mean ± s.d. of a mapping with both; the mean alone without s.d., a dash without both."""
    mean = number(_value(spread["mean"]), digits).replace("-", "−")
    return mean if spread["sd"] is None else f"{mean} ± {number(spread['sd'], digits)}"


def _percent(share: float | None) -> str:
    """With two significant digits, so that a small share is not 0."""
    if share is None:
        return "–"
    return f"{100 * share:.2g} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def _ml(volume: float) -> str:
    """One digit after the point; two significant ones of less than a millilitre."""
    return f"{volume:.2g}" if 0 < volume < 1 else f"{volume:.1f}"


def _called(tissue: Mapping[str, Any]) -> str:
    return _percent(tissue["called"] / tissue["n"] if tissue["n"] else None)


def _false(split: Mapping[str, Any], kind: str) -> str:
    return f"{_ml(split['fp_ml'][kind])} ml, {_percent(split['fp_share'][kind])}"


def _recommended(facts: DiagnosisFacts) -> str:
    """What to do, in words that start with it."""
    if facts["advice"] is None:
        return NO_ADVICE
    contexts = facts["advice"]["context_classes"]
    reason = facts["advice"]["reason"]
    if contexts == facts["context_classes"]:
        keep = "No context classes needed" if contexts == 1 else f"Keep {contexts} context classes"
        return f"{keep}. {reason}"
    return (
        f"Try {contexts} context classes. {reason} The same command with --method colab "
        f"--set context_classes={contexts}, and another --output."
    )


# --- sections -------------------------------------------------------------------------------------


def _cards(facts: DiagnosisFacts) -> str:
    split = facts["splits"][-1]
    validation = facts[split]
    cards = []
    if facts["advice"]:
        contexts = facts["advice"]["context_classes"]
        value = "none needed" if contexts == 1 else f"t = {contexts}"
        cards = [("Context classes", value, f"trained with {facts['context_classes']}")]
    for name in (SEN, PRC):
        mean = number(_value(validation[name]["mean"]), 3)
        on_training = number(_value(facts["training"][name]["mean"]), 3)
        below = f"{on_training} on training cases" if split != "training" else "training cases"
        cards.append((METRICS[name].title, mean, below))
    for kind, where in (("near", "within"), ("far", "beyond")):
        share = _percent(validation["fp_share"][kind])
        below = f"{where} {NEAR_MM:g} mm, {share} of the prediction"
        volume = f"{_ml(validation['fp_ml'][kind])} ml"
        cards.append((f"False positives, {kind}", volume, below))
    used = len(facts["training"]["cases"])
    of = f"of {plural(facts['training_cases'], 'training case')}"
    below = of if split == "training" else f"and {used} {of}"
    cards.append((shown_splits(facts)[split], str(len(validation["cases"])), below))
    return cards_html(cards)


def _advice(facts: DiagnosisFacts) -> str:
    advice = f"<p>{escape(_recommended(facts))}</p>"
    if facts["advice"] is None:
        return advice
    notes = "".join(f"<li>{escape(note)}</li>" for note in facts["advice"]["notes"])
    return advice + (f"<p>But:</p><ul>{notes}</ul>" if notes else "")


def _axes(facts: DiagnosisFacts) -> str:
    """A sentence where the axes are not of the logits that predict."""
    if facts.get("axes", "deployed") == "deployed":
        return ""
    return " " + PAPER_AXES + str(facts["arguments"].get("background", "sum")) + "."


def _margin_table(facts: DiagnosisFacts) -> str:
    body = ""
    for tissue, name in ALL.items():
        parts = [facts[split]["tissues"][tissue] for split in facts["splits"]]
        cells = []
        for part in parts:
            below = f"{grouped(part['n'])} voxels, {_called(part)} called ROI"
            cells.append(f"{_mean_sd(part, 2)}<small>{below}</small>")
        if len(parts) > 1:
            training, other = (part["mean"] for part in parts)
            shift = "–"
            if training is not None and other is not None:
                shift = f"{other - training:+.2f}".replace("-", "−")
            cells.append(shift)
        body += f"<tr>{row_name(name)}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    heads = [f"Margin, {title.lower()}" for title in shown_splits(facts).values()]
    return table_html(["Voxels"], [*heads, *(["Shift"] if len(heads) > 1 else [])], body)


def _cases(facts: DiagnosisFacts) -> str:
    """A row for each case of the last split, most false positives first."""
    split = facts["splits"][-1]
    voxel_ml = facts[split]["voxel_ml"]
    cases = facts[split]["cases"]
    body = ""
    for row in sorted(cases, key=lambda row: -row["fp_near"] - row["fp_far"]):
        predicted = row["tp"] + row["fp_near"] + row["fp_far"]
        cells = [number(_value(row[name]), 3) for name in OVERLAPS]
        cells += [_ml((row["tp"] + row["fn"]) * voxel_ml), _ml(predicted * voxel_ml)]
        for kind in ("fp_near", "fp_far"):
            share = _percent(row[kind] / predicted if predicted else None)
            cells.append(f"{_ml(row[kind] * voxel_ml)}<small>{share}</small>")
        body += f"<tr>{row_name(row['case'])}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    heads = [
        *(METRICS[name].title for name in OVERLAPS),
        *(QUANTITIES[name].title for name in ("ref_ml", "pred_ml")),
        *(METRICS[name].title for name in (FP_NEAR, FP_FAR)),
    ]
    table = table_html([shown_splits(facts)[split].removesuffix("s")], heads, body, " long")
    return table + sentence(
        f"Near: a voxel’s centre is within {NEAR_MM:g} mm of one of the ROI. Percentages: of the "
        "predicted volume."
    )


def _pictures(facts: DiagnosisFacts, arrays: DiagnosisArrays) -> str:
    drawn = panels(facts, arrays)
    name = facts["picture"]["case"]
    intro = sentence(
        f"{name}: of the {shown_splits(facts)[facts['splits'][-1]].lower()} with a ROI, the one "
        "with the most false positives."
    )
    if "intensity/counts" not in arrays:
        planes = "".join(drawn[ERRORS])
        figure = f'<figure class="case"><div class="planes">{planes}</div></figure>'
        return intro + KEY + figure + sentence(DIAGNOSIS_VIEW)

    columns = "".join(
        f'<figure class="planes side"><figcaption>{heading}</figcaption>{"".join(planes)}</figure>'
        for heading, planes in drawn.items()
    )
    rows = 1 + len(drawn[ERRORS])
    sides = f'<div class="sides" style="--rows:{rows}">{columns}</div>'
    explanation = (NEARNESS if "M" in drawn else "") + CONTEXT
    if PREDICTED in drawn:
        explanation += " " + OWN
    if facts["context_classes"] > SOFT:
        explanation += f" More than {SOFT} contexts are not shown one by one."
    charts = charts_html({"Intensity by context class": intensity_chart(arrays)})
    html = intro + KEY + _contexts_key(facts) + sides
    html += sentence(DIAGNOSIS_VIEW) + sentence(explanation) + charts
    if "learnt/q" in arrays:
        html += charts_html(learning_charts(arrays)) + sentence(LEARNING)
    return html


def _contexts_key(facts: DiagnosisFacts) -> str:
    """A coloured square and the share of each context class."""
    box = "display:inline-block;width:1.5em;height:0.7em;margin-right:0.45em;border-radius:1px"
    items = ""
    for j, share in enumerate(facts.get("context_shares", [])):
        square = f'<i style="{box};background:{colour_of(j)}"></i>'
        items += f'<b style="font-weight:400">{square}context {j + 1}: {_percent(share)}</b>'
    return f'<p class="key">{items}</p>' if items else ""
