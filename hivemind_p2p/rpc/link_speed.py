"""How fast bytes come from each peer, as seen by who receives them."""

from __future__ import annotations

from typing import Final

from hivemind_p2p.wire.peer_id import PeerID

LARGE: Final = 2**16
"""Bytes of a message from which on it is timed; smaller ones tell more of latency than of speed."""
MAX_PEERS: Final = 4096
_HALF: Final = 2**22
"""Bytes after which what was known before counts half."""


class LinkSpeeds:
    """Bytes per second that came from peers lately.

    Only the time between a message's first bytes and its last ones counts, so that neither waiting for an answer nor
    the work of either side does. What comes on several streams at once has its share each, as the next message will
    have.
    """

    def __init__(self) -> None:
        self._speeds: dict[PeerID, float] = {}

    def add(self, peer_id: PeerID, nbytes: int, seconds: float) -> None:
        """So many bytes took so long."""
        speed = nbytes / max(seconds, 1e-6)
        before = self._speeds.pop(peer_id, speed)
        keep = 0.5 ** (nbytes / _HALF)
        self._speeds[peer_id] = 1 / (keep / before + (1 - keep) / speed)  # times add up, speeds do not
        if len(self._speeds) > MAX_PEERS:
            del self._speeds[next(iter(self._speeds))]

    def of(self, peer_id: PeerID) -> float | None:
        """Bytes per second; None: nothing large has come from there."""
        return self._speeds.get(peer_id)

    def __repr__(self) -> str:
        return f"<LinkSpeeds of {len(self._speeds)} peers>"
