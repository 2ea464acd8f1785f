"""``python -m hivemind_p2p`` is the command ``hivemind-p2p``."""

from hivemind_p2p.cli import main

if __name__ == "__main__":
    main()
