"""Propagation: a few labelled slices become a labelled scan.

After Pham, Nguyen-Ho, Tran (FLARE22, LNCS 13816) and Cheng, Tai, Tang (NeurIPS 2021). A scan is
filled in three lines:

    labelled = labelled_slices(read_labels("drawn.nii.gz"))
    filled = fill(read("scan.nii.gz"), labelled, model)
    number, why = filled.suggestion

The modules, from the outside in:

- `filling`: a scan filled on its own grid, with or without a network.
- `suggestion`: the slice to label next, its name in other programs, and what was not filled.
- `labelled`: which slices of a label map are labelled, and along which axis; `previous`: which
  slices of a filled map were, and which were corrected since.
- `with_network`: slices on the pixels of a network's training, and back.
- `pretrained`: filling with the network that comes with the package; `network`: how it reads
  labelled slices, and how it is trained.
- `select`: which slices to evaluate, and which of them are the references, by rules.
- `session`: one volume and a network that walks over its slices, for many rounds.
- `shapes`: filling by the shapes of the labelled slices alone; `outlines`: that of one class.
- `memory`: what the network remembers of earlier slices, and how a new slice reads it.
- `clips` and `losses`: how a network is trained for it. The network is `contextseg.nets.stcn`.
"""

from __future__ import annotations

from contextseg.propagation.filling import (
    MERGES,
    NETWORK_WAYS,
    STOP_BELOW,
    WAYS,
    Filled,
    fill,
)
from contextseg.propagation.labelled import (
    AXES,
    LabelledSlices,
    cut_to_ranges,
    labelled_slices,
    ranges,
)
from contextseg.propagation.pretrained import CompletionModel, open_completion
from contextseg.propagation.previous import find_previous, open_previous, slices_file
from contextseg.propagation.select import SELECTION_RULES, select_slices, uniform_slices
from contextseg.propagation.session import (
    PropagationNetwork,
    PropagationResult,
    Session,
    propagate_volume,
)
from contextseg.propagation.shapes import ShapePrior, copy_nearest, interpolate_shapes
from contextseg.propagation.suggestion import describe_slice, suggest_slice
from contextseg.propagation.with_network import PropagationModel

__all__ = [
    "AXES",
    "MERGES",
    "NETWORK_WAYS",
    "SELECTION_RULES",
    "STOP_BELOW",
    "WAYS",
    "CompletionModel",
    "Filled",
    "LabelledSlices",
    "PropagationModel",
    "PropagationNetwork",
    "PropagationResult",
    "Session",
    "ShapePrior",
    "copy_nearest",
    "cut_to_ranges",
    "describe_slice",
    "fill",
    "find_previous",
    "interpolate_shapes",
    "labelled_slices",
    "open_completion",
    "open_previous",
    "propagate_volume",
    "ranges",
    "select_slices",
    "slices_file",
    "suggest_slice",
    "uniform_slices",
]
