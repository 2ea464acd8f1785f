"""The relay service: peers that nobody can dial reserve here, and others are connected to them through us.

Circuit relay v2, the "hop" side (libp2p specs/relay/circuit-v2.md). Rules:

1. Nothing is relayed over a relayed connection, neither reservations nor circuits.
2. A circuit goes to the peer over the connection on which it reserved; we dial nobody.
3. Every circuit stands for itself (py-libp2p's belong to a peer, and a second one takes the place of the first).
4. A circuit ends as its ends end it, half by half, or it is reset on both sides. Nothing of ours is written into it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import RelaySettings
from hivemind_p2p.errors import StreamError, StreamReset, TransportError
from hivemind_p2p.nat import messages, vouchers
from hivemind_p2p.nat.relay_book import RelayBook
from hivemind_p2p.nat.splice import splice
from hivemind_p2p.transport.addresses import circuit_of, endpoint_of, is_public, split_peer
from hivemind_p2p.transport.api import CircuitLimit, Connection, Network, Stream
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.wire import circuit_pb2 as pb
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"


class RelayService:
    """Serves ``HOP`` on a network, from :meth:`start` to :meth:`stop`.

    Args:
        identity: signs vouchers.
        wall_clock: Unix time in seconds, for the ends of reservations as peers are told them.
    """

    def __init__(
        self,
        network: Network,
        identity: Identity,
        settings: RelaySettings,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.book = RelayBook(settings)
        self.serving = False
        self._network = network
        self._identity = identity
        self._settings = settings
        self._wall_clock = wall_clock

    def start(self) -> None:
        """Serve."""
        self._network.set_stream_handler(HOP, self._serve)
        self.serving = True

    def stop(self) -> None:
        """Take no more reservations and circuits; those that there are go on."""
        self._network.set_stream_handler(HOP, None)
        self.serving = False

    def lost(self, connection: Connection) -> None:
        """A connection is gone, and with it what was reserved on it."""
        self.book.lost(connection)

    async def _serve(self, stream: Stream) -> None:
        with trio.move_on_after(self._settings.handshake_timeout) as timer:
            request = await messages.receive(stream, pb.HopMessage)
        self._forget_ended()
        if timer.cancelled_caught:
            await stream.reset()
        elif stream.connection is None or stream.connection.relay is not None:
            await _answer(stream, pb.PERMISSION_DENIED)
        elif request.type == pb.HopMessage.RESERVE:
            await self._reserve(stream, stream.connection)
        elif request.type == pb.HopMessage.CONNECT:
            await self._connect(stream, request)
        else:
            await _answer(stream, pb.UNEXPECTED_MESSAGE)

    def _forget_ended(self) -> None:
        """Nobody tells of the end of a connection whose peer never said who it is."""
        for connection in self.book.connections:
            if isinstance(connection, Connection) and connection.closed:
                self.book.lost(connection)

    async def _reserve(self, stream: Stream, connection: Connection) -> None:
        endpoint = endpoint_of(connection.remote_maddr) if connection.remote_maddr is not None else None
        source_ip = endpoint.host if endpoint is not None else ""
        status = self.book.reserve(stream.peer_id, connection, source_ip, trio.current_time())
        logger.debug("%s asked for a reservation: %s", stream.peer_id, pb.Status.Name(status))
        if status != pb.OK:
            await _answer(stream, status)
            return
        expire = int(self._wall_clock() + self._settings.reservation_time)
        reservation = pb.Reservation(
            expire=expire,
            addrs=[maddr.to_bytes() for maddr in self._own_maddrs()],
            voucher=vouchers.seal(self._identity, stream.peer_id, expire),
        )
        await _answer(stream, pb.OK, reservation, self._limit())

    def _own_maddrs(self) -> list[Multiaddr]:
        """Where we are dialled by those who want the peer: what all can dial, or else what we announce anyway."""
        maddrs = [maddr for maddr in self._network.visible_maddrs if circuit_of(split_peer(maddr)[0]) is None]
        return [maddr for maddr in maddrs if is_public(split_peer(maddr)[0])] or maddrs

    async def _connect(self, stream: Stream, request: pb.HopMessage) -> None:
        try:
            target = PeerID(request.peer.id)
        except ValueError:
            await _answer(stream, pb.MALFORMED_MESSAGE)
            return
        now = trio.current_time()
        status = self.book.open(stream.peer_id, target, now)
        if status != pb.OK:
            await _answer(stream, status)
            return
        try:
            connection = self.book.connection_of(target, now)
            assert isinstance(connection, Connection)
            onward = await self._reach(connection, stream.peer_id)
            if onward is None:
                await _answer(stream, pb.CONNECTION_FAILED)
                return
            try:
                await _answer(stream, pb.OK, limit=self._limit())
                ended = await splice(stream, onward, self._allowance())
            except BaseException:
                await onward.reset()
                raise
            if ended:
                raise StreamReset(f"the circuit to {target} was cut: {ended}")
            await onward.aclose()
        finally:
            self.book.close(stream.peer_id, target)

    async def _reach(self, connection: Connection, source: PeerID) -> Stream | None:
        """A stream to the peer who is wanted, once it has agreed."""
        onward: Stream | None = None
        try:
            with trio.fail_after(self._settings.handshake_timeout):
                onward = await connection.open_stream(STOP)
                wish = pb.StopMessage(type=pb.StopMessage.CONNECT, peer=pb.Peer(id=source.to_bytes()))
                limit = self._limit()
                if limit is not None:
                    wish.limit.CopyFrom(limit)
                await messages.send(onward, wish)
                answer = await messages.receive(onward, pb.StopMessage)
            if answer.type == pb.StopMessage.STATUS and answer.status == pb.OK:
                return onward
            reason = f"it answered with status {answer.status}"
        except (TransportError, trio.TooSlowError) as error:
            reason = str(error) or "it did not answer"
        except BaseException:
            if onward is not None:
                await onward.reset()
            raise
        logger.debug("%s wants %s, who cannot be had: %s", source, connection.peer_id, reason)
        if onward is not None:
            await onward.reset()
        return None

    def _limit(self) -> pb.Limit | None:
        if not self._settings.circuit_time and not self._settings.circuit_bytes:
            return None
        return pb.Limit(duration=int(self._settings.circuit_time), data=self._settings.circuit_bytes)

    def _allowance(self) -> CircuitLimit:
        unlimited = CircuitLimit()
        return CircuitLimit(
            seconds=self._settings.circuit_time or unlimited.seconds,
            size=self._settings.circuit_bytes or unlimited.size,
        )

    def __repr__(self) -> str:
        return f"<RelayService, {'serving' if self.serving else 'off'}, {self.book!r}>"


async def _answer(
    stream: Stream, status: pb.Status, reservation: pb.Reservation | None = None, limit: pb.Limit | None = None
) -> None:
    try:
        await messages.send(
            stream, pb.HopMessage(type=pb.HopMessage.STATUS, status=status, reservation=reservation, limit=limit)
        )
    except StreamError as error:
        logger.debug("%s asked this relay for something and left: %s", stream.peer_id, error)
        raise
