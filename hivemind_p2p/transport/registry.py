"""The open connections of a host: one per peer in use, however many came about.

When two peers dial each other at once, each ends up with two connections. Both must choose the same one without
asking, and nobody may cut a connection that the other is using. So: new streams go to the connection that the peer
with the smaller id dialled; of two that the same side dialled, or that are not of one moment, to the newer one (the
older may be dead without our knowing). The other one is retired: closed once no stream has been open on it for a
while, by the side that dialled it. And always a direct connection goes before a relayed one, whenever they came about;
but before any that may be dead goes one that is not.
"""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeVar

from hivemind_p2p.transport.api import Connection
from hivemind_p2p.wire.peer_id import PeerID

SAME_MOMENT: Final = 10.0
"""Seconds within which two connections count as cross dials."""


class KeptConnection(Connection):
    """A connection as the registry needs it."""

    doubted: bool = False
    """Whether it may be dead, and the peer has been asked."""
    used_at: float
    """When a stream was last opened, by either side, in ``trio.current_time``."""
    is_visit: bool = False
    """Whether the peer is expected to end it soon (``visits``): it is used only where there is no other."""

    @property
    @abc.abstractmethod
    def idle(self) -> bool:
        """Whether no stream is open on it."""


C = TypeVar("C", bound=KeptConnection)


class ConnectionRegistry(Generic[C]):
    """Connections by peer, the one to use first.

    Args:
        peer_id: our own.
    """

    def __init__(self, peer_id: PeerID) -> None:
        self._peer_id = peer_id
        self._by_peer: dict[PeerID, list[C]] = {}
        self._count = 0
        self.visitors: Counter[PeerID] = Counter()
        """Peers whose next connections to us are visits."""

    def add(self, connection: C) -> list[C]:
        """Take a connection in; the connections that we should retire for it."""
        connections = self._by_peer.setdefault(connection.peer_id, [])
        connection.is_visit = not connection.outbound and connection.peer_id in self.visitors
        self._count += 1
        connections.append(connection)
        connections.sort(key=lambda each: -each.opened_at)
        direct = [each for each in connections if each.relay is None and not each.closed]
        candidates = [each for each in direct if not each.is_visit] or direct or connections
        best = candidates[0]
        for other in candidates[1:]:
            best = self._better(best, other)
        connections.remove(best)
        connections.sort(key=lambda each: (each.relay is not None, each.is_visit))
        connections.insert(0, best)
        best = connections[0]
        return [each for each in connections[1:] if each.outbound or best.outbound == each.outbound]

    def remove(self, connection: C) -> None:
        """A connection has ended."""
        connections = self._by_peer.get(connection.peer_id, [])
        if connection in connections:
            connections.remove(connection)
            self._count -= 1
        if not connections:
            self._by_peer.pop(connection.peer_id, None)

    def best(self, peer_id: PeerID) -> C | None:
        """The connection to use for a peer; None when there is none."""
        doubted = None
        for each in self._by_peer.get(peer_id, ()):
            if not each.closed:
                if not each.doubted:
                    return each
                doubted = doubted or each
        return doubted

    def of(self, peer_id: PeerID | None) -> Sequence[C]:
        """Open connections to one peer, or to all."""
        found = self if peer_id is None else self._by_peer.get(peer_id, ())
        return [each for each in found if not each.closed]

    def idlest(self) -> C | None:
        """The connection that has been without a stream for longest; None when all are in use."""
        return min((each for each in self if each.idle), key=lambda each: each.used_at, default=None)

    def __iter__(self) -> Iterator[C]:
        return (each for connections in self._by_peer.values() for each in connections)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<ConnectionRegistry: {self._count} connections to {len(self._by_peer)} peers>"

    def _better(self, one: C, other: C) -> C:
        newer, older = (one, other) if one.opened_at >= other.opened_at else (other, one)
        if older.closed or one.outbound == other.outbound or newer.opened_at - older.opened_at > SAME_MOMENT:
            return newer
        we_are_smaller = self._peer_id < one.peer_id
        return one if one.outbound == we_are_smaller else other
