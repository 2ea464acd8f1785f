"""Asking a node that runs on this machine how it is doing, from another process of the same user.

Why a Unix socket: its folder is its owner's alone (mode 0700, as is checked before use), so that neither other users
nor anybody on the network gets as far as the socket; where the system tells who connects, that is checked as well. It
only answers questions: nothing about a node can be changed through it.
"""

from hivemind_p2p.control.client import ask_all
from hivemind_p2p.control.server import ControlServer

__all__ = ["ControlServer", "ask_all"]
