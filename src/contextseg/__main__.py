"""`python -m contextseg`, and `torchrun -m contextseg`: the command line."""

from contextseg.cli import main

if __name__ == "__main__":
    main()
