"""Label maps of other programs, with the names and colours of their classes.

3D Slicer's segmentations are in `slicer`, ITK-SNAP's label descriptions in `itksnap`; both share
the `Segment` of `segments`. docs/formats.md says what is kept and what is refused.
"""
