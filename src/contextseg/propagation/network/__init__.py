"""The network that comes with the package: how it sees labelled slices, and how it is trained.

- `features`: labelled slices and their scan as the channels that the network reads.
- `prepare`: public scans and label maps as one file, for the training.
- `drawing`: training examples, made on the GPU.
- `training`: the training, by wall time, resumable.

The network is `contextseg.nets.completion`; `contextseg.propagation.pretrained` fills scans with
it. Making it takes two commands:

    python -m contextseg.propagation.network.prepare DATA training.npz
    python -m contextseg.propagation.network.training --data training.npz --output runs/network
"""
