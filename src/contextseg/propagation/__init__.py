"""Propagation: a few labelled slices become a labelled volume (Pham et al., FLARE22; Cheng et al., NeurIPS 2021).

`select` says which slices to label; `propagate` fills the rest with a network and `interpolate` without one; `memory` is
what the network reads; it learns from `clips` by `losses`. The network is `contextseg.nets.stcn`.
"""
