"""What a relay has promised to whom: reservations and circuits, counted. Pure: time is passed in.

A reservation belongs to the connection on which it was made, and ends with it or at its time. A circuit is its own
thing, however many the same two peers have.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hivemind_p2p.config import RelaySettings
from hivemind_p2p.wire.circuit_pb2 import NO_RESERVATION, OK, RESERVATION_REFUSED, RESOURCE_LIMIT_EXCEEDED, Status
from hivemind_p2p.wire.peer_id import PeerID


@dataclass(frozen=True)
class Promise:
    """One reservation."""

    connection: object
    source_ip: str
    expires_at: float


class RelayBook:
    """The reservations and circuits of one relay."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._promises: dict[PeerID, Promise] = {}
        self._circuits: Counter[PeerID] = Counter()
        self.circuits = 0
        """Circuits open now."""

    def reserve(self, peer_id: PeerID, connection: object, source_ip: str, now: float) -> Status:
        """Make or renew a reservation for ``reservation_time`` seconds; ``OK`` or why not.

        Args:
            source_ip: where the peer comes from; one address has so many reservations at most.
        """
        self._expire(now)
        if peer_id not in self._promises:
            from_there = sum(promise.source_ip == source_ip for promise in self._promises.values())
            if (
                len(self._promises) >= self._settings.max_reservations
                or from_there >= self._settings.max_reservations_per_ip
            ):
                return RESERVATION_REFUSED
        self._promises[peer_id] = Promise(connection, source_ip, now + self._settings.reservation_time)
        return OK

    def connection_of(self, peer_id: PeerID, now: float) -> object | None:
        """The connection on which a peer is served; None without a reservation."""
        self._expire(now)
        promise = self._promises.get(peer_id)
        return promise.connection if promise is not None else None

    def lost(self, connection: object) -> None:
        """A connection is gone, and what was reserved on it."""
        self._promises = {peer: it for peer, it in self._promises.items() if it.connection is not connection}

    @property
    def connections(self) -> set[object]:
        """The connections on which something is reserved."""
        return {promise.connection for promise in self._promises.values()}

    def open(self, source: PeerID, target: PeerID, now: float) -> Status:
        """Count a new circuit in; ``OK`` or why there can be none. What was counted in must be counted out."""
        if self.connection_of(target, now) is None:
            return NO_RESERVATION
        most = self._settings.max_circuits_per_peer
        if self.circuits >= self._settings.max_circuits or max(self._circuits[source], self._circuits[target]) >= most:
            return RESOURCE_LIMIT_EXCEEDED
        self._circuits.update((source, target))
        self.circuits += 1
        return OK

    def close(self, source: PeerID, target: PeerID) -> None:
        """A circuit is gone."""
        self._circuits.subtract((source, target))
        self._circuits += Counter()  # forget zeros
        self.circuits -= 1

    @property
    def reservations(self) -> int:
        """Reservations that were made and not known to be lost."""
        return len(self._promises)

    def _expire(self, now: float) -> None:
        expired = [peer for peer, promise in self._promises.items() if promise.expires_at <= now]
        for peer in expired:
            del self._promises[peer]

    def __repr__(self) -> str:
        return f"<RelayBook: {self.reservations} reservations, {self.circuits} circuits>"
