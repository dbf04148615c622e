"""Propagation: a few labelled slices become a labelled volume (Pham et al., FLARE22; Cheng et al., NeurIPS 2021).

`select` says which slices to label; `propagate` fills the rest with a network, which reads from a `memory`, and
`interpolate` without one; the network learns from `clips` by `losses`. It is `contextseg.nets.stcn`.
"""
