"""`contextseg diagnose`: does a run show the symptom that context labels are for? `cli` adds it to the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contextseg.console import watch

EPILOG = "Example: contextseg diagnose runs/plain"


def diagnose(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run that kept validation cases (--fold 0).")],
    training_cases: Annotated[int, typer.Option(help="How many training cases to compare with.")] = 8,
) -> None:
    """Would context labels help? False positives and logits on a run's validation cases, beside its training cases."""
    from contextseg.diagnose.diagnosis import diagnose as look
    from contextseg.report.diagnosis import diagnosis_text

    found = look(run, training_cases, watch)
    typer.echo(f"{diagnosis_text(found.facts)}\n\npage  {found.page}")
