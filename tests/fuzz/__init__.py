"""The fuzz room: damaged inputs for every reader, and two outcomes that are allowed.

An input is right, or it ends in one `ContextsegError` with file, cause and remedy, in bounded time
and memory. `mutate` damages files, `corpus` makes the small real ones, `readers` lists who reads
them, `outcome` judges one input, `pool` runs many in child processes. Input (seed, index) is the
same in every process:

    python -m tests.fuzz --seed 0 --index 17
"""
