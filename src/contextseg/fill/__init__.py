"""A scan filled from a few of its own labelled slices: what a person in front of ITK-SNAP or 3D Slicer needs.

slices   which slices are labelled, and along which axis
filling  the labelled slices, and perhaps a taught network, to a labelled scan; which slice to label next
verb     `contextseg propagate`

reference    what a finished run says of some slices of a scan
stages       such a run labels some slices, the best of them fill the rest; what became of each class
stages_verb  `contextseg two-stage`
"""
