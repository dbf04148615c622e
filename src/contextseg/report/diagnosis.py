"""The page and the words of a diagnosis: are false positives a run's trouble, and would context classes help?"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from contextseg.disk import write_text
from contextseg.report.contexts import (
    ERRORS,
    SOFT,
    SPLITS,
    TISSUES,
    Arrays,
    Facts,
    colour_of,
    distance_chart,
    grouped,
    intensity_chart,
    learning_charts,
    logit_charts,
    overlap_chart,
    panels,
)
from contextseg.report.markup import charts_html, page_html, provenance_html, row_name, sentence, table_html
from contextseg.report.numbers import MEASURES, number, plural
from contextseg.report.pictures import KEY
from contextseg.report.planes import NEAR_MM

ALL = {**TISSUES, "background": "All background"}
OVERLAPS = ("dsc", "sen", "prc")
LOGITS = (
    "All ROI classes count as one. Margin: the largest logit of the ROI minus that of the background, its context "
    "classes folded in; above 0 a voxel is called ROI. Mean ± standard deviation over the voxels of all cases "
    "together. Shift: the mean on validation cases minus that on training cases. The CoLab paper’s finding is that on "
    "unseen cases the margins of background spread over the boundary, and those of the ROI less. In the charts each "
    "place where a voxel lies is painted, darker for more voxels (logarithmic); above the dashed line is called ROI."
)
RULE = (
    "The rule of thumb is the CoLab paper’s: context labels are for over-segmentation; two classes where false "
    "positives lie far from the ROI, four where they lie next to it. The thresholds are contextseg’s own "
    "(contextseg.diagnose.advice). Everything was measured on preprocessed cases, before any post-processing, and no "
    "test case was looked at."
)
CHARTS = (
    "Mean and standard deviation over cases, and each case. Beside it the mean volume of false positives in a case, by "
    "the distance from the nearest voxel of the ROI; in a case without a ROI all are in the last bin."
)
NEARNESS = (
    "M: how much the context of a voxel matters, from 0 (dark) to 1 (bright); where it is 0 a voxel is taught as plain "
    "background. "
)
CONTEXT = (
    "Colours lie on the background: the likeliest context of each voxel, and the probability of a context, from 0 "
    "(dark) to 1 (bright), at the end of the training. Shares and intensities are those of background voxels in the "
    "body, of all validation cases, each counted as much as it is taught to be of the context."
)
LEARNING = (
    "The middle slice of the first training patch, as it was drawn (turned or mirrored, perhaps), and its likeliest "
    "context at growing steps of the training; white where all contexts are equally likely."
)
VIEW = (
    f"Near: within {NEAR_MM:g} mm of the ROI, also across slices; the others are far. The patient’s right (R) is at "
    "the left of the axial and coronal planes, the front (A) at the left of the sagittal. Grey values: the 1st to 99th "
    "percentile of the preprocessed scan."
)


def write_diagnosis(path: str | Path, facts: Facts, arrays: Arrays, provenance: Mapping[str, Any]) -> None:
    """One self-contained HTML page, written atomically; equal input gives equal bytes.

    facts and arrays: as `contextseg diagnose` writes them to diagnosis.json and .npz; `provenance` is nested, and shown
    folded up. Raises `Problem` if the page cannot be written.
    """
    charts = {"Overlap with the reference": overlap_chart(facts), "False positives by distance": distance_chart(facts)}
    sections = {
        "Advice": _cards(facts) + _advice(facts) + sentence(RULE),
        "Logits": _margin_table(facts) + sentence(LOGITS) + charts_html(logit_charts(facts, arrays)),
        "False positives": charts_html(charts) + sentence(CHARTS) + _cases(facts),
        "Contexts" if facts["context_classes"] > 1 else "A case": _pictures(facts, arrays),
        "Provenance": provenance_html(provenance),
    }
    title = f"{facts['dataset']}: diagnosis of {facts['method']}"
    write_text(path, page_html(title, sections))


def diagnosis_text(facts: Facts) -> str:
    """The diagnosis for a terminal."""
    counted = " and ".join(f"{len(facts[split]['cases'])} {split}" for split in SPLITS)
    lines = [f"{facts['dataset']}, {facts['method']}: {counted} cases"]

    def block(heading: str, rows: Mapping[str, list[str]]) -> None:
        lines.extend(["", f"{heading:36}" + "".join(f"{split:>24}" for split in SPLITS)])
        lines.extend(f"  {name:34}" + "".join(f"{cell:>24}" for cell in cells) for name, cells in rows.items())

    margins = {name: [_mean_sd(facts[s]["tissues"][tissue], 2) for s in SPLITS] for tissue, name in ALL.items()}
    block("Margin, z_roi - z_background", margins)
    called = {name: [_called(facts[s]["tissues"][tissue]) for s in SPLITS] for tissue, name in ALL.items()}
    block("Voxels called ROI", called)
    block("Mean over cases", {MEASURES[c][0]: [_mean_sd(facts[s][c], 3) for s in SPLITS] for c in OVERLAPS})
    false = {kind.capitalize(): [_false(facts[s], kind) for s in SPLITS] for kind in ("near", "far")}
    block("False positives, of the prediction", false)
    lines += ["", _recommended(facts), *(f"But: {note}" for note in facts["advice"]["notes"])]
    return "\n".join(lines)


# --- words ------------------------------------------------------------------------------------------------------------


def _value(value: float | None) -> float:
    return float("nan") if value is None else value


def _mean_sd(found: Mapping[str, Any], digits: int) -> str:
    """Mean ± s.d. of a mapping with both; the mean alone without s.d., a dash without both."""
    mean = number(_value(found["mean"]), digits).replace("-", "−")
    return mean if found["sd"] is None else f"{mean} ± {number(found['sd'], digits)}"


def _percent(share: float | None) -> str:
    """With two significant digits, so that a small share is not 0."""
    return "–" if share is None else f"{100 * share:.2g} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def _ml(volume: float) -> str:
    """One digit after the point; two significant ones of less than a millilitre."""
    return f"{volume:.2g}" if 0 < volume < 1 else f"{volume:.1f}"


def _called(tissue: Mapping[str, Any]) -> str:
    return _percent(tissue["called"] / tissue["n"] if tissue["n"] else None)


def _false(split: Mapping[str, Any], kind: str) -> str:
    return f"{_ml(split['fp_ml'][kind])} ml, {_percent(split['fp_share'][kind])}"


def _recommended(facts: Facts) -> str:
    """What to do, in words that start with it."""
    t, reason = facts["advice"]["context_classes"], facts["advice"]["reason"]
    if t == facts["context_classes"]:
        return f"{'No context classes needed' if t == 1 else f'Keep {t} context classes'}. {reason}"
    return (
        f"Try {t} context classes. {reason} "
        f"The same command with --method colab --set context_classes={t}, and another --output."
    )


# --- sections ---------------------------------------------------------------------------------------------------------


def _cards(facts: Facts) -> str:
    seen, t = facts["validation"], facts["advice"]["context_classes"]
    cards = [("Context classes", "none needed" if t == 1 else f"t = {t}", f"trained with {facts['context_classes']}")]
    for column in ("sen", "prc"):
        taught = number(_value(facts["training"][column]["mean"]), 3)
        cards.append((MEASURES[column][0], number(_value(seen[column]["mean"]), 3), f"{taught} on training cases"))
    for kind, where in (("near", "within"), ("far", "beyond")):
        below = f"{where} {NEAR_MM:g} mm, {_percent(seen['fp_share'][kind])} of the prediction"
        cards.append((f"False positives, {kind}", f"{_ml(seen['fp_ml'][kind])} ml", below))
    cards.append(
        (
            "Validation cases",
            str(len(seen["cases"])),
            f"and {len(facts['training']['cases'])} of {plural(facts['training_cases'], 'training case')}",
        )
    )
    made = "".join(f"<div><dt>{a}</dt><dd>{b}</dd><dd>{escape(c)}</dd></div>" for a, b, c in cards)
    return f'<dl class="cards">{made}</dl>'


def _advice(facts: Facts) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in facts["advice"]["notes"])
    return f"<p>{escape(_recommended(facts))}</p>" + (f"<p>But:</p><ul>{notes}</ul>" if notes else "")


def _margin_table(facts: Facts) -> str:
    body = ""
    for tissue, name in ALL.items():
        both = [facts[split]["tissues"][tissue] for split in SPLITS]
        cells = [
            f"{_mean_sd(one, 2)}<small>{grouped(one['n'])} voxels, {_called(one)} called ROI</small>" for one in both
        ]
        known = None not in (both[0]["mean"], both[1]["mean"])
        cells.append(f"{both[1]['mean'] - both[0]['mean']:+.2f}".replace("-", "−") if known else "–")
        body += f"<tr>{row_name(name)}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    return table_html(["Voxels"], [f"Margin, {title.lower()}" for title in SPLITS.values()] + ["Shift"], body)


def _cases(facts: Facts) -> str:
    """A row for each validation case, most false positives first."""
    ml, seen = facts["validation"]["voxel_ml"], facts["validation"]["cases"]
    body = ""
    for row in sorted(seen, key=lambda row: -row["fp_near"] - row["fp_far"]):
        predicted = row["tp"] + row["fp_near"] + row["fp_far"]
        cells = [number(_value(row[column]), 3) for column in OVERLAPS]
        cells += [_ml((row["tp"] + row["fn"]) * ml), _ml(predicted * ml)]
        for kind in ("fp_near", "fp_far"):
            cells.append(
                f"{_ml(row[kind] * ml)}<small>{_percent(row[kind] / predicted if predicted else None)}</small>"
            )
        body += f"<tr>{row_name(row['case'])}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    heads = [*(MEASURES[column][0] for column in OVERLAPS), "Ref., ml", "Pred., ml", "FP near, ml", "FP far, ml"]
    table = table_html(["Validation case"], heads, body, " long")
    told = f"Near: a voxel’s centre is within {NEAR_MM:g} mm of one of the ROI. Percentages: of the predicted volume."
    return table + sentence(told)


def _pictures(facts: Facts, arrays: Arrays) -> str:
    found, name = panels(facts, arrays), facts["picture"]["case"]
    told = sentence(f"{name}: of the validation cases with a ROI, the one with the most false positives.")
    if "intensity/counts" not in arrays:
        planes = f'<figure class="case"><div class="planes">{"".join(found[ERRORS])}</div></figure>'
        return told + KEY + planes + sentence(VIEW)
    columns = "".join(
        f'<figure class="planes side"><figcaption>{heading}</figcaption>{"".join(drawn)}</figure>'
        for heading, drawn in found.items()
    )
    rows = 1 + len(found[ERRORS])
    made = told + KEY + _contexts_key(facts) + f'<div class="sides" style="--rows:{rows}">{columns}</div>'
    more = "" if facts["context_classes"] <= SOFT else f" More than {SOFT} contexts are not shown one by one."
    charts = {"Intensity by context class": intensity_chart(arrays)}
    made += sentence(VIEW) + sentence(("M" in found) * NEARNESS + CONTEXT + more) + charts_html(charts)
    return made + (charts_html(learning_charts(arrays)) + sentence(LEARNING) if "learnt/q" in arrays else "")


def _contexts_key(facts: Facts) -> str:
    """A coloured square and the share of each context class."""
    box = "display:inline-block;width:1.5em;height:0.7em;margin-right:0.45em;border-radius:1px"
    made = ""
    for j, share in enumerate(facts.get("context_shares", [])):
        square = f'<i style="{box};background:{colour_of(j)}"></i>'
        made += f'<b style="font-weight:400">{square}context {j + 1}: {_percent(share)}</b>'
    return f'<p class="key">{made}</p>' if made else ""
