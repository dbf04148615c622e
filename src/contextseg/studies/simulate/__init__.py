"""How many slices does somebody have to label? A study with a simulated annotator.

`run_study(study, folder)` takes the labelled cases of a data set. For each structure it labels a
few slices, has the rest filled, corrects one slice, and so on, and measures each round. Finished
cases are kept in the folder, and a study that was interrupted goes on where it stopped.

- `annotator`: the annotator on one structure of one scan: which slices come first, which next.
- `network`: a baseline, a 2-D network trained on the labelled slices of one scan.
- `study`: the annotator over a data set.
- `chain` and `chain_report`: the whole chain on a budget, over the cases of a data set.
- `summary`, `plot` and `results`: means and curves over structures, and the files that hold them.
"""

from __future__ import annotations

from contextseg.studies.simulate.annotator import (
    CORRECTION_RULES,
    STARTS,
    Evaluation,
    annotate_structure,
)
from contextseg.studies.simulate.chain import ARMS, Arm, ChainStudy, run_chain
from contextseg.studies.simulate.chain_report import chain_means, chain_tests, study_chain
from contextseg.studies.simulate.network import train_and_fill
from contextseg.studies.simulate.results import run_study, write_results
from contextseg.studies.simulate.study import (
    ALL_WAYS,
    Study,
    simulate_cases,
    study_cases,
)
from contextseg.studies.simulate.summary import means, slices_needed, summary

__all__ = [
    "ALL_WAYS",
    "ARMS",
    "CORRECTION_RULES",
    "STARTS",
    "Arm",
    "ChainStudy",
    "Evaluation",
    "Study",
    "annotate_structure",
    "chain_means",
    "chain_tests",
    "means",
    "run_chain",
    "run_study",
    "simulate_cases",
    "slices_needed",
    "study_cases",
    "study_chain",
    "summary",
    "train_and_fill",
    "write_results",
]
