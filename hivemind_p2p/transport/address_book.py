"""Where peers may be reached, and how well each address did. Pure: time is passed in.

Every address is a hint. An address that answered is proven: it is tried first and forgotten last. One that failed is
left alone for a while, twice as long with each failure in a row; a success clears that. The book is bounded in peers
and in addresses per peer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from multiaddr import Multiaddr

from hivemind_p2p.transport.addresses import endpoint_of, why_undialable
from hivemind_p2p.wire.peer_id import PeerID


@dataclass
class _Entry:
    maddr: Multiaddr
    order: int
    proven: int = 0
    """When it last answered, as a count of successes; 0 for never."""
    failures: int = 0
    retry_at: float = 0.0
    reason: str = ""


class AddressBook:
    """Addresses by peer, best first.

    Args:
        max_peers: peers remembered; the one unused for longest goes first.
        max_per_peer: addresses remembered of each.
        backoff: seconds that an address is left alone after its first failure.
        backoff_max: the most that they double to.
    """

    def __init__(self, *, max_peers: int, max_per_peer: int, backoff: float, backoff_max: float) -> None:
        self._max_peers = max_peers
        self._max_per_peer = max_per_peer
        self._backoff = backoff
        self._backoff_max = backoff_max
        self._peers: OrderedDict[PeerID, dict[Multiaddr, _Entry]] = OrderedDict()
        self._count = 0

    def add(self, peer_id: PeerID, maddrs: Iterable[Multiaddr]) -> None:
        """Remember addresses (without ``/p2p``); those that nobody could dial are left out."""
        fresh = [maddr for maddr in maddrs if why_undialable(maddr) is None]
        if not fresh:
            return
        entries = self._touch(peer_id)
        for maddr in fresh:
            if maddr not in entries:
                self._count += 1
                entries[maddr] = _Entry(maddr, self._count)
                self._trim(entries)

    def addresses(self, peer_id: PeerID) -> list[Multiaddr]:
        """All addresses of a peer, best first."""
        return [entry.maddr for entry in self._ranked(peer_id)]

    def candidates(self, peer_id: PeerID, now: float) -> list[Multiaddr]:
        """The addresses to try now, best first: those that are not left alone."""
        return [entry.maddr for entry in self._ranked(peer_id) if entry.retry_at <= now]

    def resting(self, peer_id: PeerID, now: float) -> list[tuple[Multiaddr, float, str]]:
        """The addresses that are left alone: ``(address, seconds more, why it failed)``."""
        return [
            (entry.maddr, entry.retry_at - now, entry.reason) for entry in self._ranked(peer_id) if entry.retry_at > now
        ]

    def succeeded(self, peer_id: PeerID, maddr: Multiaddr) -> None:
        """The address answered, and it was the peer."""
        entries = self._touch(peer_id)
        self._count += 1
        entries.setdefault(maddr, _Entry(maddr, self._count)).proven = self._count
        self._trim(entries)
        self.heard_of(peer_id)

    def heard_of(self, peer_id: PeerID) -> None:
        """The peer is alive: none of its addresses is left alone any more."""
        for entry in self._peers.get(peer_id, {}).values():
            entry.failures, entry.retry_at, entry.reason = 0, 0.0, ""

    def forgive(self) -> None:
        """Whatever failed may have failed for a reason of ours: no address of anybody is left alone any more."""
        for peer_id in self._peers:
            self.heard_of(peer_id)

    def failed(self, peer_id: PeerID, maddr: Multiaddr, reason: str, now: float) -> None:
        """The address did not answer."""
        entry = self._peers.get(peer_id, {}).get(maddr)
        if entry is not None:
            rest = min(self._backoff * 2.0 ** min(entry.failures, 30), self._backoff_max)
            entry.failures += 1
            entry.retry_at = now + rest
            entry.reason = reason

    def forget(self, peer_id: PeerID, maddr: Multiaddr) -> None:
        """Somebody else lives there."""
        entries = self._peers.get(peer_id, {})
        entries.pop(maddr, None)
        if not entries:
            self._peers.pop(peer_id, None)

    def __len__(self) -> int:
        return len(self._peers)

    def __repr__(self) -> str:
        return f"<AddressBook of {len(self._peers)} peers>"

    def _touch(self, peer_id: PeerID) -> dict[Multiaddr, _Entry]:
        entries = self._peers.setdefault(peer_id, {})
        self._peers.move_to_end(peer_id)
        while len(self._peers) > self._max_peers:
            self._peers.popitem(last=False)
        return entries

    def _trim(self, entries: dict[Multiaddr, _Entry]) -> None:
        while len(entries) > self._max_per_peer:
            del entries[max(entries.values(), key=_badness).maddr]

    def _ranked(self, peer_id: PeerID) -> list[_Entry]:
        entries = list(self._peers.get(peer_id, {}).values())
        if len(entries) < 2:
            return entries
        ranked = sorted(entries, key=_badness)
        proven = [entry for entry in ranked if entry.proven]
        return proven + _alternate_families([entry for entry in ranked if not entry.proven])


def _badness(entry: _Entry) -> tuple[bool, int, int, int]:
    return (not entry.proven, -entry.proven, entry.failures, entry.order)


def _alternate_families(entries: list[_Entry]) -> list[_Entry]:
    """RFC 8305, section 4: address families take turns, so that one broken family costs one attempt, not all."""
    by_family: dict[int, list[_Entry]] = {}
    for entry in entries:
        endpoint = endpoint_of(entry.maddr)
        by_family.setdefault(endpoint.family if endpoint else 0, []).append(entry)
    queues = list(by_family.values())
    return [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
