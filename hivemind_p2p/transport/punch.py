"""Connections that both sides dial at once, so that each opens the way through its NAT for the other.

A punch ends as a simultaneous open, or as an ordinary accept on either side (behind a NAT that lets in whoever knows
the port). Who secures it as client and who as server was agreed beforehand, whichever way it came up. So:

1. What the client of a punch accepts from its peer meanwhile, it secures as client (:meth:`Puncher.expected`).
2. A dial of the server may be accepted by a peer that does not know yet that both dial: what said so goes through the
   relay, and the dial does not. That peer waits for us to speak: who is silent, or only greets, is no client
   (:func:`speaks_as_client`).
3. There is one dial per address at a time, and it is kept: a second one would find NATs that still remember the first.
4. Several addresses may succeed at once. Only the client ends the others, or each side might keep what the other drops.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import trio
from libp2p.abc import ITransport
from multiaddr import Multiaddr

from hivemind_p2p.errors import TransportError
from hivemind_p2p.transport.addresses import endpoint_of
from hivemind_p2p.transport.connection import MuxedConnection
from hivemind_p2p.transport.negotiate import GREETING, line
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.transport.tcp import TCPTransport
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
_SECOND_LINE: Final = 0.05
"""Seconds after its greeting within which a client says what it wants; most say both at once."""


class Adopt(Protocol):
    """Secures a raw connection to a peer, as client or server, and takes it into use; raises TransportError."""

    async def __call__(self, raw: RawConnection, peer_id: PeerID, *, as_client: bool) -> MuxedConnection: ...


class Punch:
    """One punch under way.

    Args:
        is_client: what was agreed on.
    """

    def __init__(self, puncher: Puncher, peer_id: PeerID, *, is_client: bool) -> None:
        self.peer_id = peer_id
        self.is_client = is_client
        self.connection: MuxedConnection | None = None
        """The direct connection that came about, if one did."""
        self.answered = trio.Event()
        """Set when somebody answered a dial of ours."""
        self.arrived = trio.Event()
        """Set when there is a direct connection."""
        self.both_dial = is_client
        """Whether the peer dials as well, or has been told to."""
        self.patience = 0.0
        """For the server: seconds to wait for the first word of a peer that answered."""
        self._puncher = puncher
        self._dials: dict[Multiaddr, trio.CancelScope] = {}

    def dial(self, maddrs: Iterable[Multiaddr]) -> None:
        """Start to dial those addresses that are not being dialled yet."""
        for maddr in maddrs:
            if maddr not in self._dials:
                scope = self._dials[maddr] = trio.CancelScope()
                self._puncher.start(self, maddr, scope)

    def end(self) -> None:
        """End all dials."""
        for scope in self._dials.values():
            scope.cancel()

    def includes(self, ip: str) -> bool:
        """Whether the peer may come from an IP address."""
        return any(endpoint.host == ip for endpoint in map(endpoint_of, self._dials) if endpoint is not None)

    def __repr__(self) -> str:
        role = "client" if self.is_client else "server"
        return f"<Punch to {self.peer_id!r} as {role}, {len(self._dials)} addresses>"


class Puncher:
    """Punches of one host.

    Args:
        nursery: owns dials and handshakes.
    """

    def __init__(self, nursery: trio.Nursery, transport: ITransport, adopt: Adopt) -> None:
        self._nursery = nursery
        self._transport = transport
        self._adopt = adopt
        self._punches: list[Punch] = []

    @contextmanager
    def punching(self, peer_id: PeerID, *, is_client: bool) -> Iterator[Punch]:
        """A punch, whose dials end with the block."""
        punch = Punch(self, peer_id, is_client=is_client)
        self._punches.append(punch)
        try:
            yield punch
        finally:
            self._punches.remove(punch)
            punch.end()

    def start(self, punch: Punch, maddr: Multiaddr, scope: trio.CancelScope) -> None:
        """Dial one address of a punch, until it answers or ``scope`` is cancelled."""
        self._nursery.start_soon(self._dial, punch, maddr, scope)

    def expected(self, remote: Multiaddr | None) -> PeerID | None:
        """Whom we shall be a client of if this address comes to us now; None: of nobody."""
        endpoint = endpoint_of(remote) if remote is not None else None
        if endpoint is None:
            return None
        for punch in reversed(self._punches):
            if punch.is_client and punch.includes(endpoint.host):
                return punch.peer_id
        return None

    def connected(self, connection: MuxedConnection) -> None:
        """A connection came about, in whatever way."""
        for punch in self._punches:
            if connection.relay is None and punch.peer_id == connection.peer_id and punch.connection is None:
                punch.connection = connection
                punch.arrived.set()
                if punch.is_client:
                    punch.end()

    async def _dial(self, punch: Punch, maddr: Multiaddr, scope: trio.CancelScope) -> None:
        try:
            with scope:
                raw = await self._connect(maddr)
                punch.answered.set()
                if punch.is_client:
                    await self._adopt(raw, punch.peer_id, as_client=True)
            if punch.is_client or scope.cancelled_caught:
                return
            as_client = not punch.both_dial or not await speaks_as_client(raw, punch.patience)
            await self._adopt(raw, punch.peer_id, as_client=as_client)
        except TransportError as error:
            logger.debug("a punch to %s at %s came to nothing: %s", punch.peer_id, maddr, error)

    async def _connect(self, maddr: Multiaddr) -> RawConnection:
        if isinstance(self._transport, TCPTransport):
            return await self._transport.punch(maddr)
        raw = await self._transport.dial(maddr)
        assert isinstance(raw, RawConnection)
        return raw

    def __repr__(self) -> str:
        return f"<Puncher, {len(self._punches)} punches under way>"


async def speaks_as_client(raw: RawConnection, patience: float) -> bool:
    """Whether the other side begins as a client does: with its greeting and a wish, unasked. Nothing is taken off.

    Args:
        patience: seconds to wait for its first word.
    """
    if not isinstance(raw.stream, trio.SocketStream):
        return False
    greeting = line(GREETING)
    sock = raw.stream.socket
    with trio.move_on_after(patience) as timer:
        await trio.lowlevel.wait_readable(sock.fileno())
        timer.deadline = trio.current_time() + _SECOND_LINE
        while True:
            try:
                if len(await sock.recv(len(greeting) + 1, socket.MSG_PEEK)) != len(greeting):
                    return True  # more, or something else, or the end: the handshake will find out
            except OSError:
                return True
            await trio.sleep(_SECOND_LINE / 5)
    return False
