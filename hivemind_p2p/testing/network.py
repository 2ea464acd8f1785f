"""``MemoryNetwork``: one peer's network in a :class:`~hivemind_p2p.testing.world.World`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import trio
from multiaddr import Multiaddr

from hivemind_p2p.background import Background
from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConnectionLost, DialError, NodeClosed, TransportError
from hivemind_p2p.testing.connection import MemoryConnection
from hivemind_p2p.testing.mail import Mail
from hivemind_p2p.testing.world import World
from hivemind_p2p.transport.address_book import AddressBook
from hivemind_p2p.transport.addresses import split_peer, with_peer
from hivemind_p2p.transport.api import Connection, PeerResolver, Stream, StreamHandler
from hivemind_p2p.transport.dialer import Dialer, WrongPeer
from hivemind_p2p.transport.registry import ConnectionRegistry
from hivemind_p2p.wire.peer_id import PeerID


class MemoryNetwork(Background):
    """A peer's connections in memory: ``async with world.network() as network``. Implements ``transport.api.Network``.

    It dials by the rules of the real ``Host`` (the same address book, dialer and choice among connections). Connecting
    takes one round trip, and so does opening a stream for a protocol that the peer is not known to speak.
    """

    def __init__(
        self, world: World, peer_id: PeerID, maddr: Multiaddr, *, listen: bool, settings: TransportSettings
    ) -> None:
        self.world = world
        self.peer_id = peer_id
        self.maddr = maddr
        self.settings = settings
        self.handlers: dict[str, StreamHandler] = {}
        self.mail = Mail()
        self._listen = listen
        self._connections: ConnectionRegistry[MemoryConnection] = ConnectionRegistry(peer_id)
        self._dialer: Dialer[MemoryConnection] | None = None
        self._book = self._empty_book()

    async def _begin(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.mail.run)
        self._dialer = Dialer(nursery, self._book, self.settings, self._attempt, self._register)
        self.world.arrived(self, listening=self._listen)

    async def _end(self) -> None:
        self._nursery = self._dialer = None
        self.world.left(self)
        for connection in list(self._connections):
            connection.close()

    @property
    def nursery(self) -> trio.Nursery:
        """Owns what serves streams."""
        self._running()
        assert self._nursery is not None
        return self._nursery

    def connection_ended(self, connection: MemoryConnection) -> None:
        """A connection is no more."""
        self._connections.remove(connection)

    @property
    def visible_maddrs(self) -> Sequence[Multiaddr]:
        return [with_peer(self.maddr, self.peer_id)] if self._listen else []

    async def connect(self, maddr: Multiaddr) -> PeerID:
        bare, peer_id = split_peer(maddr)
        if peer_id is None or peer_id == self.peer_id:
            raise DialError(f"cannot dial {maddr}: it ends in no other peer's /p2p/<peer id>")
        if self._connections.best(peer_id) is None:
            await self._running().dial(peer_id, [bare])
        return peer_id

    async def open_stream(self, peer_id: PeerID, protocol: str, *, carries: int = 0) -> Stream:
        dialer = self._running()
        if peer_id == self.peer_id:
            raise DialError("cannot open a stream to this peer itself", peer_id=peer_id.base58)
        connection = self._connections.best(peer_id)
        if connection is not None:
            try:
                return await connection.open_stream(protocol)
            except ConnectionLost:
                if not connection.closed:
                    raise
        connection = self._connections.best(peer_id) or await dialer.dial(peer_id)
        return await connection.open_stream(protocol)

    def set_stream_handler(self, protocol: str, handler: StreamHandler | None) -> None:
        if handler is None:
            self.handlers.pop(protocol, None)
        else:
            self.handlers[protocol] = handler

    def connections(self, peer_id: PeerID | None = None) -> Sequence[Connection]:
        return self._connections.of(peer_id)

    def add_addresses(self, peer_id: PeerID, maddrs: Iterable[Multiaddr]) -> None:
        if peer_id != self.peer_id:
            self._book.add(peer_id, (split_peer(maddr)[0] for maddr in maddrs))

    def addresses(self, peer_id: PeerID) -> Sequence[Multiaddr]:
        return self._book.addresses(peer_id)

    def set_peer_resolver(self, resolver: PeerResolver | None) -> None:
        self._running().resolver = resolver

    def forget(self, peer_id: PeerID | None = None) -> None:
        """Close the connections to a peer and forget its addresses; of all peers, as after a restart, if None."""
        for connection in list(self._connections.of(peer_id)):
            connection.close()
        if peer_id is not None:
            for maddr in self._book.addresses(peer_id):
                self._book.forget(peer_id, maddr)
        else:
            resolver, nursery = self._running().resolver, self._nursery
            assert nursery is not None
            self._book = self._empty_book()
            self._dialer = Dialer(nursery, self._book, self.settings, self._attempt, self._register)
            self._dialer.resolver = resolver

    def world_changed(self) -> None:
        """Who reaches us, or whom we reach, is not what it was; the world tells."""
        for connection in list(self._connections):
            connection.world_changed()
            connection.other.world_changed()

    def __repr__(self) -> str:
        state = f"{len(self._connections)} connections" if self._nursery is not None else "not running"
        return f"<MemoryNetwork {self.peer_id!r} at {self.maddr}, {state}>"

    def _running(self) -> Dialer[MemoryConnection]:
        if self._dialer is None:
            raise NodeClosed("this network is not running: use it inside `async with world.network() as network`")
        return self._dialer

    def _empty_book(self) -> AddressBook:
        return AddressBook(
            max_peers=self.settings.max_known_peers,
            max_per_peer=self.settings.max_addresses_per_peer,
            backoff=self.settings.dial_backoff,
            backoff_max=self.settings.dial_backoff_max,
        )

    async def _attempt(self, peer_id: PeerID, maddr: Multiaddr) -> MemoryConnection:
        there = self.world.listener(maddr)
        if not self.world.reachable(self.peer_id, peer_id if there is None else there.peer_id):
            await trio.sleep_forever()  # until the dialer gives up
        await trio.sleep(self.world.travel_time() + self.world.travel_time())
        if there is None or self.world.listener(maddr) is not there:
            raise TransportError("connection refused")
        if there.peer_id != peer_id:
            raise WrongPeer(f"somebody else lives there: {there.peer_id}")
        ours, theirs = MemoryConnection.pair(self, there, maddr)
        there._accept(theirs)
        return ours

    def _accept(self, connection: MemoryConnection) -> None:
        self._register(connection)
        self._running().connected(connection)

    def _register(self, connection: MemoryConnection) -> None:
        self._running()
        self._connections.add(connection)
        self._book.heard_of(connection.peer_id)
