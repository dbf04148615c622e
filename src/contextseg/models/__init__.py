"""Models that travel: as one file of ours, and as ONNX or a torch program for others to run."""

from contextseg.models.archive import TrainedModel, export_archive, open_archive
from contextseg.models.ensemble import (
    Ensemble,
    is_ensemble,
    open_ensemble,
    open_runs,
    validated_by_all,
)
from contextseg.models.network import export_network

__all__ = [
    "Ensemble",
    "TrainedModel",
    "export_archive",
    "export_network",
    "is_ensemble",
    "open_archive",
    "open_ensemble",
    "open_runs",
    "validated_by_all",
]
