"""``Host``: the network over libp2p.

Built from libp2p's parts (keys, the Noise handshake, the identify message, its transport interface) and not from its
``BasicHost`` and ``Swarm``, whose policies are traps for a long-lived node. Where each trap of py-libp2p 0.8.1 went:

- *Everything a swarm starts by itself* (auto-connector, pruner, mDNS, UPnP, QUIC, plaintext, secio, mplex): there is
  no swarm; only Noise and Yamux are offered and accepted (``upgrade``).
- *A swarm keeps one slot and one task for every connection it ever accepted*, and refuses all once they are used up:
  here a connection that ended leaves nothing, and at the limit the longest idle one makes room (``registry``).
- *Opening a stream starts a task for every observer; closing a connection sleeps*: no observers, no sleeps.
- *dial_peer tries one address per transport; a silent peer hangs it; host.connect costs 250 ms*: ``dialer``, ``race``.
- *0.0.0.0 is announced*: :attr:`Host.visible_maddrs` names addresses that others can dial.
- *100 partial reads end a connection; IPv6 peers have no address*: ``raw`` and ``tcp``.
- *A cancelled write kills the connection; a slow reader is reset; more than 256 streams hang*: ``yamux``.
- *An exception in a stream handler ends the swarm*: ``connection`` logs it and resets that stream.
- *libp2p reports what is daily life as errors*: ``TransportSettings.quiet_libp2p``.

Importing this module imports libp2p (a second, 70 MB): import it when a node starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

import trio
from libp2p.abc import ITransport
from multiaddr import Multiaddr

from hivemind_p2p.background import Background
from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConnectionLost, DialError, ListenError, NodeClosed, TransportError
from hivemind_p2p.transport import identify
from hivemind_p2p.transport.address_book import AddressBook
from hivemind_p2p.transport.addresses import (
    addresses_of,
    circuit_of,
    endpoint_of,
    interface_ips,
    interface_networks,
    public_first,
    split_peer,
    why_undialable,
    with_peer,
)
from hivemind_p2p.transport.api import Connection, PeerDescription, PeerResolver, Stream, StreamHandler
from hivemind_p2p.transport.connection import MuxedConnection
from hivemind_p2p.transport.dialer import Dialer
from hivemind_p2p.transport.establish import CircuitDialer, Establisher
from hivemind_p2p.transport.handshakes import Handshakes
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.introductions import Introductions
from hivemind_p2p.transport.limited import with_room
from hivemind_p2p.transport.listeners import Listeners
from hivemind_p2p.transport.punch import Punch, Puncher
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.transport.registry import ConnectionRegistry
from hivemind_p2p.transport.tcp import TCPTransport
from hivemind_p2p.transport.visits import Visits
from hivemind_p2p.transport.weeding import doubt, retire, weed
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
_PING_IDLE: Final = 120.0


class Host(Background):
    """One peer's connections: ``async with Host(identity, host_maddrs=[...]) as host``. Implements ``api.Network``.

    Args:
        identity: who we are.
        host_maddrs: addresses to listen on; port 0 takes a free one; none: only dial.
        announce_maddrs: addresses to tell others instead of those we listen on.
        settings: times and bounds.
        transport: a libp2p ``ITransport``; default TCP. Its listeners run in their ``background_nursery``.

    Raises (on entering):
        ListenError: an address to listen on cannot be used.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        host_maddrs: Sequence[Multiaddr] = (),
        announce_maddrs: Sequence[Multiaddr] = (),
        settings: TransportSettings | None = None,
        transport: ITransport | None = None,
    ) -> None:
        self.identity = identity
        self.settings = settings if settings is not None else TransportSettings()
        self._host_maddrs = tuple(host_maddrs)
        self._announce_maddrs = tuple(announce_maddrs)
        self._transport = transport if transport is not None else TCPTransport()
        self._establisher = Establisher(identity, self.settings, self._transport)
        self._book = AddressBook(
            max_peers=self.settings.max_known_peers,
            max_per_peer=self.settings.max_addresses_per_peer,
            backoff=self.settings.dial_backoff,
            backoff_max=self.settings.dial_backoff_max,
        )
        self._connections: ConnectionRegistry[MuxedConnection] = ConnectionRegistry(identity.peer_id)
        self.visits = Visits(self._establisher, self._connections)
        self._introductions = Introductions(self.settings, self._describe, self._learned)
        self._handlers: dict[str, StreamHandler] = {
            identify.IDENTIFY: self._introductions.answer,
            identify.PUSH: self._introductions.take_push,
            identify.PING: identify.ping_handler(_PING_IDLE),
        }
        self._listeners = Listeners()
        self._handshakes = Handshakes(self.settings.max_handshakes)
        self._dialer: Dialer[MuxedConnection] | None = None
        self._puncher: Puncher | None = None
        self._registered = trio.Event()
        self._extra_maddrs: tuple[Multiaddr, ...] = ()
        self.on_identified: Callable[[MuxedConnection], None] = lambda connection: None
        """Called each time that a peer has said who it is."""

    async def _begin(self, nursery: trio.Nursery) -> None:
        if self.settings.quiet_libp2p and logging.getLogger("libp2p").level == logging.NOTSET:
            logging.getLogger("libp2p").setLevel(logging.CRITICAL)
        self._dialer = Dialer(nursery, self._book, self.settings, self._attempt, self._register, interface_networks)
        self._puncher = Puncher(nursery, self._transport, self.adopt)
        for maddr in self._host_maddrs:
            await self._listen(maddr)

    async def _end(self) -> None:
        self._nursery = self._dialer = None
        async with trio.open_nursery() as closing:  # bounded: each close gives up after a second
            closing.start_soon(self._listeners.aclose)
            for connection in list(self._connections):
                closing.start_soon(connection.aclose)
        if isinstance(self._transport, TCPTransport):
            self._transport.close()

    @property
    def peer_id(self) -> PeerID:
        """Who we are."""
        return self.identity.peer_id

    @property
    def visible_maddrs(self) -> Sequence[Multiaddr]:
        """Addresses that others can dial, each ending in ``/p2p/<our id>``; empty when we do not listen.

        What was given to announce; otherwise what we listen on, and what else was found out about where we are
        reached (:meth:`set_extra_maddrs`): that goes before private addresses, which mean nothing to most.
        """
        maddrs: Iterable[Multiaddr] = self._announce_maddrs
        if not maddrs:
            everywhere, here = public_first(self.listen_maddrs)
            maddrs = dict.fromkeys([*everywhere, *self._extra_maddrs, *here])
        return [with_peer(maddr, self.peer_id) for maddr in maddrs]

    @property
    def listen_maddrs(self) -> Sequence[Multiaddr]:
        """Where we listen and can be dialled, without ``/p2p``."""
        return self._listeners.maddrs

    @property
    def announce_maddrs(self) -> Sequence[Multiaddr]:
        """What was given to announce, without ``/p2p``."""
        return [split_peer(maddr)[0] for maddr in self._announce_maddrs]

    @property
    def is_of_this_machine(self) -> bool:
        """Whether its networks are those of the machine, and not a test's."""
        return isinstance(self._transport, TCPTransport)

    def set_extra_maddrs(self, maddrs: Iterable[Multiaddr]) -> None:
        """Announce these too (mapped ports, circuits), and tell the peers when they changed."""
        extra = tuple(maddrs)
        if extra != self._extra_maddrs:
            self._extra_maddrs = extra
            self.push_identify()

    def push_identify(self) -> None:
        """Tell all peers what changed about us: addresses, or protocols that we serve."""
        self._running()[0].start_soon(self._introductions.push, list(self._connections))

    async def connect(self, maddr: Multiaddr) -> PeerID:
        """Connect to the peer at ``maddr`` (which ends in ``/p2p/<id>``) unless we are connected; return its id.

        ``/p2p/<id>`` alone is the peer wherever it is known to be, if need be by who resolves peers.

        Raises:
            DialError: nobody answered there or at the peer's other known addresses, or somebody else did.
        """
        try:
            bare, peer_id = split_peer(maddr)
        except ValueError as error:
            raise DialError(f"cannot dial {maddr}: {error}") from None
        if peer_id is None:
            raise DialError(f"cannot dial {maddr}: it does not say which peer lives there; append /p2p/<peer id>")
        if peer_id == self.peer_id:
            raise DialError(f"cannot dial {maddr}: that is this peer itself", peer_id=peer_id.base58)
        if self._connections.best(peer_id) is None:
            given = [bare] if list(bare.protocols()) else []
            for each in given:
                if (problem := why_undialable(each)) is not None:
                    raise DialError(f"cannot dial {maddr}: {problem}", peer_id=peer_id.base58)
            if circuit_of(bare) is not None:
                self.add_addresses(peer_id, given)
            await self._running()[1].dial(peer_id, given)
        return peer_id

    def set_circuit_dialer(self, dial: CircuitDialer | None) -> None:
        """Let ``dial`` connect us where only a relay leads; None: circuit addresses cannot be dialled."""
        self._establisher.dial_circuit = dial

    def punching(self, peer_id: PeerID, *, is_client: bool) -> AbstractContextManager[Punch]:
        """Connect to a peer through NATs while it dials us too, see :mod:`.punch`.

        Args:
            is_client: our role in securing what comes up, as agreed with the peer.
        """
        self._running()
        assert self._puncher is not None
        return self._puncher.punching(peer_id, is_client=is_client)

    async def adopt(self, raw: RawConnection, peer_id: PeerID | None = None, *, as_client: bool) -> MuxedConnection:
        """Secure a connection that came about in another way than by our dials and listeners, and take it into use.

        Args:
            peer_id: who must be at the other end; a client has to know.
            as_client: our role in securing it.

        Raises:
            TransportError: the handshake failed, somebody else is there, or there is no room. Then it is closed.
            NodeClosed: this host ends. Then it is closed, too.
        """
        try:
            self._running()
        except NodeClosed:
            await raw.close()
            raise
        connection = await self._establisher.secure(raw, peer_id, as_client=as_client)
        try:
            self._register(connection)
        except (TransportError, NodeClosed):
            await connection.aclose()
            raise
        return connection

    async def open_stream(self, peer_id: PeerID, protocol: str, *, carries: int = 0) -> Stream:
        """Open a stream to a peer, connecting first when needed. What a relay would cut off waits (``limited``).

        Args:
            carries: bytes that are to go over it in one direction, the more of the two, as far as that is known.

        Raises:
            DialError, ProtocolNotSupported, RelayLimited, StreamError
        """
        dialer = self._running()[1]
        connection = self._connections.best(peer_id)
        if connection is not None and connection.room >= carries:
            try:
                return await connection.open_stream(protocol, carries=carries)
            except ConnectionLost:  # it had died without our knowing; nothing was asked on it yet
                if not connection.closed:
                    raise
        if peer_id == self.peer_id:
            raise DialError("cannot open a stream to this peer itself", peer_id=peer_id.base58)
        connection = self._connections.best(peer_id) or await dialer.dial(peer_id)
        if connection.room < carries:
            best, dial = partial(self._connections.best, peer_id), partial(dialer.dial, peer_id)
            connection = await with_room(connection, carries, best, dial, lambda: self._registered.wait())
        return await connection.open_stream(protocol, carries=carries)

    def set_stream_handler(self, protocol: str, handler: StreamHandler | None) -> None:
        """Serve a protocol; ``None`` stops serving it.

        The handler owns the stream. It runs in a task of the connection and is cancelled when that is gone. When it
        returns the stream is closed; when it raises, the stream is reset and the exception logged.
        """
        if handler is None:
            self._handlers.pop(protocol, None)
        else:
            self._handlers[protocol] = handler

    def connections(self, peer_id: PeerID | None = None) -> Sequence[MuxedConnection]:
        """Open connections, to one peer (the one in use first) or to all."""
        return self._connections.of(peer_id)

    def add_addresses(self, peer_id: PeerID, maddrs: Iterable[Multiaddr]) -> None:
        """Remember where a peer may be reached (bounded per peer; hints, never trusted)."""
        if peer_id != self.peer_id:
            self._book.add(peer_id, addresses_of(peer_id, maddrs))

    def addresses(self, peer_id: PeerID) -> Sequence[Multiaddr]:
        """The addresses remembered for a peer, best first, without ``/p2p``."""
        return self._book.addresses(peer_id)

    async def network_changed(self) -> list[MuxedConnection]:
        """This machine may be in another network: look where it is, and end the connections that did not come along.

        Returns:
            The connections that are gone, the ones that were used last first.
        """
        self._listeners.look_again()
        self._running()[1].look_again()
        self._book.forgive()
        return await weed(self.connections(), set(interface_ips()))

    def set_peer_resolver(self, resolver: PeerResolver | None) -> None:
        """Ask ``resolver`` for addresses of a peer when none that we know of answers."""
        self._running()[1].resolver = resolver

    def __repr__(self) -> str:
        if self._nursery is None:
            return f"<Host {self.peer_id!r}, not running>"
        return f"<Host {self.peer_id!r}, {len(self._connections)} connections, {len(self._listeners)} listeners>"

    def _running(self) -> tuple[trio.Nursery, Dialer[MuxedConnection]]:
        if self._nursery is None or self._dialer is None:
            raise NodeClosed("this host is not running: use it inside `async with Host(...) as host`")
        return self._nursery, self._dialer

    async def _listen(self, maddr: Multiaddr) -> None:
        if not self._transport.can_listen(maddr):
            raise ListenError(
                f"cannot listen on {maddr}: it is not an address to listen on; it should look like /ip4/0.0.0.0/tcp/0"
            )
        listener = self._transport.create_listener(self._accept)  # type: ignore[arg-type]  # all of ours give RawConnections
        listener.background_nursery = self._nursery  # type: ignore[attr-defined]
        await listener.listen(maddr)
        self._listeners.add(listener)

    async def _attempt(self, peer_id: PeerID, maddr: Multiaddr) -> MuxedConnection:
        """Dial one address; aside if the peer announces relays: then it is to be punched through to (``punch``, 5)."""
        punched = any(circuit_of(known) is not None for known in self._book.addresses(peer_id))
        return await self._establisher.dial(peer_id, maddr, aside=punched)

    async def _accept(self, raw: RawConnection) -> None:
        """Secure one accepted connection; runs in the host's nursery."""
        endpoint = endpoint_of(raw.remote) if raw.remote is not None else None
        with self._handshakes.one(endpoint.host if endpoint is not None else "") as has_place:
            if self._nursery is None or not has_place or not self._has_room():
                await raw.close()
                return
            assert self._puncher is not None
            try:
                client_of = await self._puncher.expected(raw)
                await self.adopt(raw, client_of, as_client=client_of is not None)
            except (TransportError, NodeClosed) as error:
                logger.debug("a connection from %s was not taken: %s", raw.remote, error)

    def _register(self, connection: MuxedConnection) -> None:
        """Take a new connection into use. Raises TransportError when there is no room."""
        nursery, dialer = self._running()
        limit = self.settings.max_connections
        if not self._has_room():
            raise TransportError(f"all {limit} connections are in use; raise transport.max_connections")
        if len(self._connections) >= limit and (idle := self._connections.idlest()):
            self._connections.remove(idle)
            nursery.start_soon(idle.aclose)
        for loser in self._connections.add(connection):
            nursery.start_soon(retire, loser, self._connections.best)
        doubt(self.connections(connection.peer_id), connection, nursery)
        self._book.heard_of(connection.peer_id)
        self._registered.set()
        self._registered = trio.Event()
        nursery.start_soon(self._serve, connection)
        assert self._puncher is not None
        self._puncher.connected(connection)
        dialer.connected(connection)

    def _has_room(self) -> bool:
        """Whether one more connection is possible, if need be for an idle one."""
        return len(self._connections) < self.settings.max_connections or self._connections.idlest() is not None

    async def _serve(self, connection: MuxedConnection) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._introductions.ask, connection)
                await connection.serve(self._handlers)
                nursery.cancel_scope.cancel()
        finally:
            self._connections.remove(connection)
            connection.identified.set()
            connection.ended.set()

    def _describe(self, observed: Multiaddr | None) -> bytes:
        return identify.describe(
            public_key=self.identity.public_key_bytes,
            listening=self.visible_maddrs,
            protocols=sorted(self._handlers),
            observed=observed if observed is not None and circuit_of(observed) is None else None,
        )

    def _learned(self, connection: Connection, said: PeerDescription) -> None:
        self.add_addresses(connection.peer_id, said.maddrs)
        assert isinstance(connection, MuxedConnection)
        self.on_identified(connection)
