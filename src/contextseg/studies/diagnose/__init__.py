"""Would context labels help a finished run? Its validation cases beside some training cases.

- `measure`: logits and ROI calls of one case for three tissues: the ROI, the background near it,
  and the background far from it.
- `advice`: whether context classes are worth their while, and how many.
- `contexts`: what a method with context classes was trained with: M, and the contexts of each
  background voxel.
- `choosing`: which cases are measured.
- `arrays`: what the page draws.
- `diagnosis`: all of it for a finished run, as JSON, arrays and a page.

Test cases are opened where they are asked for, and give no advice: what is chosen by them can no
longer be tested on them.
"""

from __future__ import annotations

from contextseg.studies.diagnose.diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
