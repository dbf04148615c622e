"""From a network to a label map, with bounded memory.

A sliding window gives finished slabs of logits, and each slab becomes classes on the output grid at
once. Arrays in, arrays out; no files here, but those of `record`, which says who made label maps,
and of `store`, which keeps the probabilities of all classes.
The logits are held for one window's depth of the image, never for all of it, and at the resolution
of the network, never at that of the output.
"""

from __future__ import annotations

from contextseg.predict.labels import labels_from_slabs, segment
from contextseg.predict.store import STEPS, ProbabilityStore
from contextseg.predict.windows import Network, gaussian, positions, sliding_window

__all__ = [
    "STEPS",
    "Network",
    "ProbabilityStore",
    "gaussian",
    "labels_from_slabs",
    "positions",
    "segment",
    "sliding_window",
]
