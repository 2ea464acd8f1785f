"""How long to wait for a peer before another is asked beside it, and before it is given up. Pure.

The usual time of a peer's answers, and how much it varies, are estimated as TCP does (RFC 6298): a smoothed mean and
mean deviation. Who is late by its own standards holds nobody up. Who never answered before may have to be dialled
first, and is measured by what that took with others. The settings are the most that is waited.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.wire.peer_id import PeerID

_PEERS: Final = 4096
_LEAST_PATIENCE: Final = 0.05
_LEAST_PATIENCE_WITH_STRANGERS: Final = 0.25
_LEAST_TIMEOUT: Final = 1.0
_LEAST_HEDGE: Final = 0.02
_ENOUGH: Final = 8


@dataclass(slots=True)
class _Estimate:
    mean: float
    deviation: float
    samples: int = 1

    def add(self, seconds: float) -> None:
        self.deviation += (abs(seconds - self.mean) - self.deviation) / 4
        self.mean += (seconds - self.mean) / 8
        self.samples += 1

    @property
    def late(self) -> float:
        return self.mean + 4 * self.deviation


class Patience:
    """What is known of how fast peers answer."""

    def __init__(self, settings: DHTSettings) -> None:
        self._settings = settings
        self._peers: OrderedDict[PeerID, _Estimate] = OrderedDict()
        self._strangers: _Estimate | None = None

    def answered(self, peer: PeerID, seconds: float) -> None:
        """A peer took so long to answer."""
        estimate = self._peers.pop(peer, None)
        if estimate is not None:
            estimate.add(seconds)
        else:
            estimate = _Estimate(seconds, seconds / 2)
            if self._strangers is not None:
                self._strangers.add(seconds)
            else:
                self._strangers = _Estimate(seconds, seconds / 2)
        self._peers[peer] = estimate
        if len(self._peers) > _PEERS:
            self._peers.popitem(last=False)

    def slow_after(self, peer: PeerID) -> float:
        """Seconds after which a request to this peer is late, and another peer is asked as well."""
        estimate = self._peers.get(peer)
        if estimate is not None:
            return min(max(estimate.late, _LEAST_PATIENCE), self._settings.slow_after)
        if self._strangers is None or self._strangers.samples < _ENOUGH:
            return self._settings.slow_after
        return min(max(self._strangers.late, _LEAST_PATIENCE_WITH_STRANGERS), self._settings.slow_after)

    def hedge_after(self, peer: PeerID) -> float | None:
        """Seconds after which most answers of this peer are there; None: it is a stranger."""
        estimate = self._peers.get(peer)
        if estimate is None:
            return None
        return min(max(estimate.mean + 2 * estimate.deviation, _LEAST_HEDGE), self.slow_after(peer))

    def timeout(self, peer: PeerID) -> float:
        """Seconds after which a request to this peer is lost."""
        estimate = self._peers.get(peer)
        if estimate is None:
            return self._settings.wait_timeout
        return min(max(5 * estimate.late, _LEAST_TIMEOUT), self._settings.wait_timeout)

    def __repr__(self) -> str:
        strangers = "nothing is known" if self._strangers is None else f"{1000 * self._strangers.mean:.1f} ms"
        return f"<Patience with {len(self._peers)} peers; of strangers: {strangers}>"
