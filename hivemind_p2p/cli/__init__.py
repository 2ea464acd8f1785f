"""The command ``hivemind-p2p``: one file per verb. A verb loads what it needs when it runs, so that help is quick."""

from hivemind_p2p.cli.app import main

__all__ = ["main"]
