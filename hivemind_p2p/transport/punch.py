"""Connections that both sides dial at once, so that each opens the way through its NAT for the other.

A punch ends as a simultaneous open, or as an ordinary accept on either side (behind a NAT that lets in whoever knows
the port). Who secures it as client and who as server was agreed beforehand, whichever way it came up. So:

1. What the client of a punch accepts from its peer meanwhile, it secures as client (:meth:`Puncher.expected`). What
   its server accepts, it listens to first: a peer of another kind may wait for us to speak, as the server that it is.
2. A dial of the server may be accepted by a peer that does not know yet that both dial: what said so goes through the
   relay, and the dial does not. That peer waits for us to speak: who is silent, or only greets, is no client
   (:func:`speaks_as_client`).
3. All the same both may be clients: one spoke late, or a plain dial met a punch, or both sides lead a punch. Between
   nodes of this kind the handshake settles it (``noise.handshake``).
4. There is one dial per address at a time, and it is kept: a second one would find NATs that still remember the first.
   When the connection that it made comes to nothing, it is made again, for as long as the punch lasts.
5. What we dialled and gave up leaves a hole in our NAT for minutes. Through it the peer's dial gets to us, and if no
   dial of ours meets it, our listener answers: to the NAT that belongs to no connection, the answer does not get out,
   and the pair of addresses is of no use for as long as the NAT remembers. So dials outlast their round until the next
   one takes them over, and plain dials of a peer that may be punched through to leave from another port.
6. Several addresses may succeed at once. Only the client ends the others, or each side might keep what the other drops.
"""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol

import trio
from libp2p.abc import ITransport
from multiaddr import Multiaddr

from hivemind_p2p.errors import NodeClosed, TransportError
from hivemind_p2p.transport.addresses import endpoint_of
from hivemind_p2p.transport.connection import MuxedConnection
from hivemind_p2p.transport.negotiate import GREETING, line
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.transport.tcp import TCPTransport
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
_MOST_DIALS: Final = 16
"""Addresses of one peer that are dialled, whatever it names in round after round."""
_LINGER: Final = 2.0
"""Seconds that dials outlast their round."""
_PAUSE: Final = (0.02, 0.05)
"""Seconds before an address is dialled again whose connection came to nothing."""
_SECOND_LINE: Final = 0.05
"""Seconds after its greeting within which a client says what it wants; most say both at once."""


class Adopt(Protocol):
    """Secures a raw connection to a peer, as client or server, and takes it into use; raises TransportError or
    NodeClosed, and has closed it then."""

    async def __call__(self, raw: RawConnection, peer_id: PeerID, *, as_client: bool) -> MuxedConnection: ...


class Punch:
    """Punches to one peer, round after round."""

    def __init__(self, puncher: Puncher, peer_id: PeerID) -> None:
        self.peer_id = peer_id
        self.is_client = False
        """What was agreed on for this round."""
        self.users = 0
        """Rounds under way."""
        self.connection: MuxedConnection | None = None
        """The direct connection that came about, if one did."""
        self.answered = trio.Event()
        """Set when somebody answered a dial of ours."""
        self.arrived = trio.Event()
        """Set when there is a direct connection that came about since."""
        self.over = False
        """Whether nothing is dialled any more."""
        self.both_dial = False
        """Whether the peer dials as well, or has been told to."""
        self.patience = 0.0
        """For the server: seconds to wait for the first word of a peer that answered."""
        self._puncher = puncher
        self._dials: set[Multiaddr] = set()
        self._connecting: set[trio.CancelScope] = set()
        self._securing: set[trio.CancelScope] = set()

    def begin(self, *, is_client: bool) -> None:
        """A round begins."""
        self.is_client = is_client
        self.both_dial |= is_client
        self.answered = trio.Event()
        self.users += 1

    def dial(self, maddrs: Iterable[Multiaddr]) -> None:
        """Start to dial those addresses that are not being dialled yet, as far as there is room."""
        for maddr in maddrs:
            if maddr not in self._dials and len(self._dials) < _MOST_DIALS:
                self._dials.add(maddr)
                self._puncher.start(self, maddr)

    def end(self) -> None:
        """Dial no more. Whoever answered before is still secured."""
        self.over = True
        for scope in list(self._connecting):
            scope.cancel()

    def settle(self, connection: MuxedConnection) -> None:
        """There is a direct connection. The client of a punch gives up all others."""
        self.connection = connection
        self.arrived.set()
        if self.is_client:
            self.end()
            for scope in list(self._securing):
                scope.cancel()

    def connecting(self) -> AbstractContextManager[None]:
        """A block that :meth:`end` cancels."""
        return _cancelled_with(self._connecting)

    def securing(self) -> AbstractContextManager[None]:
        """A block that :meth:`settle` cancels, on the side of the client."""
        return _cancelled_with(self._securing)

    @property
    def has_dialled(self) -> bool:
        """Whether any address was dialled."""
        return bool(self._dials)

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
        self._punches: dict[PeerID, Punch] = {}

    @contextmanager
    def punching(self, peer_id: PeerID, *, is_client: bool) -> Iterator[Punch]:
        """A round of punching, whose dials end a little after the block.

        Args:
            is_client: our role, as agreed on.
        """
        punch = self._punches.get(peer_id)
        if punch is None or punch.over or punch.connection is not None:
            punch = self._punches[peer_id] = Punch(self, peer_id)
        punch.begin(is_client=is_client)
        try:
            yield punch
        finally:
            punch.users -= 1
            if punch.over or punch.connection is not None:
                punch.end()
                self._forget(punch)
            elif not punch.users:
                self._nursery.start_soon(self._linger, punch)

    async def _linger(self, punch: Punch) -> None:
        with punch.connecting():
            await trio.sleep(_LINGER)
        if not punch.users:
            punch.end()
            self._forget(punch)

    def _forget(self, punch: Punch) -> None:
        if self._punches.get(punch.peer_id) is punch:
            del self._punches[punch.peer_id]

    def start(self, punch: Punch, maddr: Multiaddr) -> None:
        """Dial one address of a punch, until there is a connection or the punch is over."""
        self._nursery.start_soon(self._dial, punch, maddr)

    async def expected(self, raw: RawConnection) -> PeerID | None:
        """Whom we shall be a client of on a connection that we accepted; None: of nobody."""
        endpoint = endpoint_of(raw.remote) if raw.remote is not None else None
        punches = [] if endpoint is None else [each for each in self._punches.values() if each.includes(endpoint.host)]
        for punch in punches:
            if punch.over:
                continue
            if punch.is_client:
                return punch.peer_id
            if punch.both_dial and punch.patience and not await speaks_as_client(raw, punch.patience):
                return punch.peer_id
        return None

    def connected(self, connection: MuxedConnection) -> None:
        """A connection came about, in whatever way."""
        punch = self._punches.get(connection.peer_id)
        if punch is not None and connection.relay is None and punch.connection is None:
            punch.settle(connection)

    async def _dial(self, punch: Punch, maddr: Multiaddr) -> None:
        while not punch.over:
            raw: RawConnection | None = None
            try:
                with punch.connecting():
                    raw = await self._connect(maddr)
                if raw is not None:
                    punch.answered.set()
                    await self._secure(punch, raw)
                return
            except NodeClosed:
                return
            except TransportError as error:
                logger.debug("a punch to %s at %s came to nothing: %s", punch.peer_id, maddr, error)
                if raw is None:
                    return
            with punch.connecting():
                await trio.sleep(random.uniform(*_PAUSE))

    async def _secure(self, punch: Punch, raw: RawConnection) -> None:
        if punch.is_client:
            with punch.securing():
                await self._adopt(raw, punch.peer_id, as_client=True)
        else:
            as_client = not punch.both_dial or not await speaks_as_client(raw, punch.patience)
            await self._adopt(raw, punch.peer_id, as_client=as_client)

    async def _connect(self, maddr: Multiaddr) -> RawConnection:
        if isinstance(self._transport, TCPTransport):
            return await self._transport.punch(maddr)
        raw = await self._transport.dial(maddr)
        assert isinstance(raw, RawConnection)
        return raw

    def __repr__(self) -> str:
        return f"<Puncher, {len(self._punches)} punches under way>"


@contextmanager
def _cancelled_with(scopes: set[trio.CancelScope]) -> Iterator[None]:
    with trio.CancelScope() as scope:
        scopes.add(scope)
        try:
            yield
        finally:
            scopes.discard(scope)


async def speaks_as_client(raw: RawConnection, patience: float) -> bool:
    """Whether the other side begins as a client does: with its greeting and a wish, unasked. Nothing is taken off.

    Args:
        patience: seconds to wait for its first word. The connection is closed if that is cancelled.
    """
    if not isinstance(raw.stream, trio.SocketStream):
        return False
    try:
        return await _speaks(raw.stream.socket, patience)
    except BaseException:
        await raw.close()
        raise


async def _speaks(sock: trio.socket.SocketType, patience: float) -> bool:
    greeting = line(GREETING)
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
