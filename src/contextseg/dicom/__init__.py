"""DICOM scans: a folder of slices, or one enhanced file, to an array and its affine.

Tags are read by pydicom, compressed pixels by GDCM. Every slice's position, orientation and pixel
spacing is read and compared; a series whose slices disagree is refused, never bent to fit.
docs/formats.md says what is read and what is refused.
"""

from contextseg.dicom.files import Series, is_dicom, series_in
from contextseg.dicom.reading import read_series

__all__ = ["Series", "is_dicom", "read_series", "series_in"]
