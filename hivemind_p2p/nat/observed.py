"""Our addresses as others see them. Pure: time is passed in.

One observer is believed: an address that a liar told costs a dial into the void, one that we did not believe costs the
direct connection.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from multiaddr import Multiaddr

from hivemind_p2p.transport.addresses import endpoint_of, is_public
from hivemind_p2p.wire.peer_id import PeerID

_MOST_OBSERVERS: Final = 64
_AGE: Final = 3600.0


@dataclass(frozen=True)
class Observation:
    """What one peer sees of us."""

    observer: PeerID
    maddr: Multiaddr
    at: float
    """``trio.current_time``."""
    observer_maddr: Multiaddr | None = None
    """Where the observer is, if we dialled it: what it sees is what a NAT made of our port for it."""


class ObservedAddresses:
    """The latest observation of each of so many peers, for an hour."""

    def __init__(self) -> None:
        self._by_observer: OrderedDict[PeerID, Observation] = OrderedDict()

    def add(self, observer: PeerID, maddr: Multiaddr, now: float, observer_maddr: Multiaddr | None = None) -> bool:
        """Note what a peer sees over a direct connection; whether our IP address is new to us.

        Args:
            observer_maddr: where we dialled it; None: it dialled us.
        """
        endpoint = endpoint_of(maddr)
        if endpoint is None or endpoint.ip is None:
            return False
        is_new = endpoint.host not in self.ips(now)
        self._by_observer[observer] = Observation(observer, maddr, now, observer_maddr)
        self._by_observer.move_to_end(observer)
        while len(self._by_observer) > _MOST_OBSERVERS:
            self._by_observer.popitem(last=False)
        return is_new

    def keep(self, observers: Collection[PeerID]) -> None:
        """The network changed: only what these see counts on, whose connections outlived that."""
        for observer in [each for each in self._by_observer if each not in observers]:
            del self._by_observer[observer]

    def maddrs(self, now: float) -> list[Multiaddr]:
        """Where we are seen, by the most peers first, the latest first among those."""
        votes: dict[Multiaddr, int] = {}
        for observation in reversed(self.observations(now)):
            votes[observation.maddr] = votes.get(observation.maddr, 0) + 1
        return sorted(votes, key=lambda maddr: -votes[maddr])

    def ips(self, now: float) -> set[str]:
        """The IP addresses that we are seen at."""
        return {endpoint.host for maddr in self.maddrs(now) if (endpoint := endpoint_of(maddr)) is not None}

    def public_ips_like(self, maddr: Multiaddr, now: float) -> set[str]:
        """Those of the whole internet, of the family of an address that is one; otherwise none."""
        endpoint = endpoint_of(maddr)
        if endpoint is None or not is_public(maddr):
            return set()
        seen = [(each, endpoint_of(each)) for each in self.maddrs(now) if is_public(each)]
        return {each.host for _, each in seen if each is not None and each.family == endpoint.family}

    def observations(self, now: float) -> list[Observation]:
        """What counts, the oldest first."""
        return [observation for observation in self._by_observer.values() if now - observation.at <= _AGE]

    def __repr__(self) -> str:
        return f"<ObservedAddresses of {len(self._by_observer)} observers>"
