"""Models that travel: as one file of ours, and as ONNX or a torch program for others to run."""

from contextseg.models.archive import export_archive, open_archive
from contextseg.models.network import export_network

__all__ = ["export_archive", "export_network", "open_archive"]
