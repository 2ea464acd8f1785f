"""Which relay to ask next. Pure: time is passed in.

Relays given beforehand (the initial peers) come first, then those that were met. One that failed is left alone for a
while, twice as long each time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hivemind_p2p.wire.peer_id import PeerID

_MOST_MET = 32


@dataclass
class _Candidate:
    given: bool
    order: int
    failures: int = 0
    retry_at: float = 0.0


class RelayCandidates:
    """Peers that may be relays.

    Args:
        retry: seconds that one is left alone after its first failure.
        retry_max: the most that they double to.
    """

    def __init__(self, *, retry: float, retry_max: float) -> None:
        self._retry = retry
        self._retry_max = retry_max
        self._peers: dict[PeerID, _Candidate] = {}
        self._count = 0

    def add(self, peer_id: PeerID, *, given: bool) -> bool:
        """A peer may be a relay; whether that is new. Of those that were met the latest are remembered."""
        known = self._peers.get(peer_id)
        if known is not None:
            return False
        self._count += 1
        self._peers[peer_id] = _Candidate(given, self._count)
        met = [peer for peer, candidate in self._peers.items() if not candidate.given]
        if len(met) > _MOST_MET:
            del self._peers[met[0]]
        return True

    def next(self, now: float, without: Collection[PeerID]) -> PeerID | None:
        """The relay to ask now; None when all are in use (``without``) or left alone."""
        ready = [
            (candidate.failures, not candidate.given, candidate.order, peer)
            for peer, candidate in self._peers.items()
            if peer not in without and candidate.retry_at <= now
        ]
        return min(ready, key=lambda entry: entry[:3])[3] if ready else None

    def next_time(self, without: Collection[PeerID]) -> float | None:
        """When one that is left alone may be asked again; None when there is none."""
        times = [candidate.retry_at for peer, candidate in self._peers.items() if peer not in without]
        return min(times, default=None)

    def failed(self, peer_id: PeerID, now: float) -> None:
        """It did not serve us."""
        candidate = self._peers.get(peer_id)
        if candidate is not None:
            candidate.retry_at = now + min(self._retry * 2.0 ** min(candidate.failures, 30), self._retry_max)
            candidate.failures += 1

    def forgive(self) -> None:
        """Whoever failed may have failed for a reason of ours: all may be asked at once."""
        for peer_id in self._peers:
            self.succeeded(peer_id)

    def succeeded(self, peer_id: PeerID) -> None:
        """It serves us."""
        candidate = self._peers.get(peer_id)
        if candidate is not None:
            candidate.failures, candidate.retry_at = 0, 0.0

    def __repr__(self) -> str:
        return f"<RelayCandidates: {len(self._peers)} peers>"
