"""Peers that did not answer, passed over for a while: twice as long with each failure in a row. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from hivemind_p2p.wire.peer_id import PeerID

MAX_BAN = 3600.0


@dataclass(slots=True)
class _Ban:
    until: float
    failures: int


class Blacklist:
    """Who is passed over now.

    Args:
        base_time: seconds that the first failure costs; 0 turns the list off.
        backoff_rate: what each further failure in a row multiplies it by, up to an hour.
        max_peers: the most peers remembered; whoever failed longest ago is forgotten first.
    """

    def __init__(self, base_time: float, backoff_rate: float, max_peers: int = 10_000) -> None:
        self.base_time, self.backoff_rate, self.max_peers = base_time, backoff_rate, max_peers
        self._bans: OrderedDict[PeerID, _Ban] = OrderedDict()

    def failed(self, peer: PeerID, now: float) -> None:
        """The peer did not answer. Failures while it is passed over, of requests sent before, do not count."""
        ban = self._bans.pop(peer, None) or _Ban(now, 0)
        if ban.until <= now and self.base_time:
            # The exponent is bounded so that the power is a finite number.
            ban.until = now + min(self.base_time * self.backoff_rate ** min(ban.failures, 50), MAX_BAN)
            ban.failures += 1
        self._bans[peer] = ban
        if len(self._bans) > self.max_peers:
            self._bans.popitem(last=False)

    def answered(self, peer: PeerID) -> None:
        """The peer is well: all is forgotten."""
        self._bans.pop(peer, None)

    def passes_over(self, peer: PeerID, now: float) -> bool:
        """Whether the peer is to be left alone now."""
        ban = self._bans.get(peer)
        return ban is not None and now < ban.until

    def __repr__(self) -> str:
        return f"<Blacklist of {len(self._bans)} peers>"
