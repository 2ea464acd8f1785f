"""Connections for one errand, which a host uses for nothing else: finding out whether peers can be dialled.

All leave from a fresh port: a NAT lets in what comes from an address and port that was dialled from inside, so that a
dial from the port that we listen on would prove nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio
from multiaddr import Multiaddr

from hivemind_p2p.errors import TransportError
from hivemind_p2p.transport.connection import MuxedConnection
from hivemind_p2p.transport.establish import Establisher
from hivemind_p2p.transport.registry import ConnectionRegistry
from hivemind_p2p.wire.peer_id import PeerID

Errand = Callable[[MuxedConnection], Awaitable[None]]


class Visits:
    """Visits that a host makes, and those that it expects."""

    def __init__(self, establisher: Establisher, connections: ConnectionRegistry[MuxedConnection]) -> None:
        self._establisher = establisher
        self._connections = connections

    async def knock(self, peer_id: PeerID, maddr: Multiaddr) -> None:
        """Find out whether a peer is reached at an address, no further than the handshake. Bound it with a scope.

        Raises:
            TransportError: it is not, and why.
        """
        await self._establisher.dial_back(peer_id, maddr)

    async def visit(self, peer_id: PeerID, maddr: Multiaddr, errand: Errand) -> None:
        """Connect to a peer under a name that it does not know us by, which so stands for no connection that we share,
        and serve it nothing, until ``errand`` is done. Bound it with a scope.

        Raises:
            TransportError: it is not reached, or the errand failed.
        """
        connection = await self._establisher.dial_as_stranger(peer_id, maddr)
        failure: TransportError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.serve, {})
            try:
                await errand(connection)
            except TransportError as error:
                failure = error  # passes by the nursery, which would wrap it in a group
            finally:
                with trio.CancelScope(shield=True):  # bounded: a close gives up after a second
                    await connection.aclose()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    @contextmanager
    def expected_from(self, peer_id: PeerID) -> Iterator[None]:
        """Inside, what the peer dials is taken for a visit: it will end it, so that we use another one if there is."""
        self._connections.visitors[peer_id] += 1
        try:
            yield
        finally:
            self._connections.visitors[peer_id] -= 1
            if not self._connections.visitors[peer_id]:
                del self._connections.visitors[peer_id]

    def __repr__(self) -> str:
        return f"<Visits, {len(self._connections.visitors)} peers expected>"
