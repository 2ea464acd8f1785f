"""Using relays: circuits dialled and taken, reservations made. Circuit relay v2, both ends of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.errors import StreamReset, TransportError
from hivemind_p2p.nat import messages, vouchers
from hivemind_p2p.nat.relay_service import HOP, STOP
from hivemind_p2p.transport.addresses import circuit_maddr, circuit_of, is_public, why_undialable, with_peer
from hivemind_p2p.transport.api import CircuitLimit, Connection, Stream
from hivemind_p2p.wire import circuit_pb2 as pb
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.transport.circuit import CircuitConnection
    from hivemind_p2p.transport.connection import MuxedConnection
    from hivemind_p2p.transport.host import Host

logger = logging.getLogger(__name__)
_MOST_ADDRESSES: Final = 8
_SHORTEST: Final = 60.0
_LONGEST: Final = 86400.0


@dataclass(frozen=True)
class Reservation:
    """A relay's promise to connect others to us."""

    relay: PeerID
    maddrs: tuple[Multiaddr, ...]
    """Circuit addresses of ours through it, without the last ``/p2p``."""
    seconds: float
    """How long it holds, if it is not renewed."""
    limit: CircuitLimit | None
    """What the relay puts up with on one circuit."""


class RelayClient:
    """Circuits and reservations of one host.

    Args:
        timeout: seconds that a relay may take for anything.
        taken: called with each connection that came to us through a relay.
        wall_clock: Unix time in seconds.
    """

    def __init__(
        self,
        host: Host,
        *,
        timeout: float,
        taken: Callable[[MuxedConnection], None],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.relays: set[PeerID] = set()
        """Who may bring us circuits: the relays that we asked to."""
        self._host = host
        self._timeout = timeout
        self._taken = taken
        self._wall_clock = wall_clock

    def start(self) -> None:
        """Dial circuit addresses, and take circuits that relays bring."""
        self._host.set_circuit_dialer(self.dial)
        self._host.set_stream_handler(STOP, self._take)

    def stop(self) -> None:
        """The opposite of :meth:`start`."""
        self._host.set_circuit_dialer(None)
        self._host.set_stream_handler(STOP, None)

    async def dial(self, peer_id: PeerID, maddr: Multiaddr) -> CircuitConnection:
        """Have a relay connect us to a peer.

        Args:
            maddr: a circuit address, without the last ``/p2p``.

        Raises:
            TransportError: the relay cannot be reached, or does not connect us; in words, why.
        """
        from hivemind_p2p.transport.circuit import CircuitConnection

        circuit = circuit_of(maddr)
        assert circuit is not None
        if self._host.peer_id in (circuit.relay, peer_id):
            raise TransportError("that leads through this peer itself")
        connection = await self._direct(circuit.relay, circuit.relay_maddr)
        request = pb.HopMessage(type=pb.HopMessage.CONNECT, peer=pb.Peer(id=peer_id.to_bytes()))
        stream, answer = await self._ask(connection, request)
        return CircuitConnection(stream, circuit.relay_maddr, _limit_in(answer.limit), initiator=True)

    async def reserve(self, connection: Connection) -> Reservation:
        """Ask the relay at the other end of a direct connection to connect others to us.

        Raises:
            TransportError: it does not, and why.
        """
        relay = connection.peer_id
        self.relays.add(relay)  # before the answer: circuits may come right behind it
        try:
            stream, answer = await self._ask(connection, pb.HopMessage(type=pb.HopMessage.RESERVE))
            await stream.aclose()
            self._check_voucher(relay, answer.reservation)
        except BaseException:
            self.relays.discard(relay)
            raise
        told = messages.maddrs_in(answer.reservation.addrs, _MOST_ADDRESSES)
        usable = [maddr for maddr in told if is_public(maddr) and why_undialable(maddr) is None]
        if connection.outbound and connection.remote_maddr is not None and connection.remote_maddr not in usable:
            # We dialled it there ourselves. It goes first only where the relay knows no public address of its own.
            usable.append(connection.remote_maddr)
        if not usable:
            usable = [maddr for maddr in told if why_undialable(maddr) is None]
        seconds = answer.reservation.expire - self._wall_clock()
        if not _SHORTEST <= seconds <= _LONGEST:  # a clock is wrong, theirs or ours
            seconds = min(max(seconds, _SHORTEST), _LONGEST)
        maddrs = tuple(circuit_maddr(relay, maddr) for maddr in usable[:2])
        return Reservation(relay, maddrs, seconds, _limit_in(answer.limit))

    def _check_voucher(self, relay: PeerID, reservation: pb.Reservation) -> None:
        """Raises TransportError: there is one, and it is wrong."""
        if not reservation.voucher:
            return
        wrong = vouchers.why_wrong(reservation.voucher, relay, self._host.peer_id, reservation.expire)
        if wrong:
            raise TransportError(f"the relay {relay} lies: of its voucher, {wrong}")

    async def _direct(self, relay: PeerID, maddr: Multiaddr | None) -> Connection:
        """A direct connection to a relay. One that is itself relayed will not do."""
        for _ in range(2):
            for connection in self._host.connections(relay):
                if connection.relay is None:
                    return connection
            known = [maddr] if maddr is not None else self._host.addresses(relay)
            direct = [each for each in known if circuit_of(each) is None]
            if not direct:
                break
            await self._host.connect(with_peer(direct[0], relay))
        raise TransportError(f"no direct way to the relay {relay} is known")

    async def _ask(self, connection: Connection, request: pb.HopMessage) -> tuple[Stream, pb.HopMessage]:
        stream: Stream | None = None
        try:
            with trio.fail_after(self._timeout):
                stream = await connection.open_stream(HOP)
                await messages.send(stream, request)
                answer = await messages.receive(stream, pb.HopMessage)
            if answer.type != pb.HopMessage.STATUS or answer.status != pb.OK:
                raise TransportError(f"the relay {connection.peer_id} says no: {_in_words(answer.status)}")
        except trio.TooSlowError:
            await _drop(stream)
            raise TransportError(f"the relay {connection.peer_id} did not answer in {self._timeout:g} s") from None
        except BaseException:
            await _drop(stream)
            raise
        return stream, answer

    async def _take(self, stream: Stream) -> None:
        """A relay brings us a circuit. It lives in this task, and ends with it."""
        from hivemind_p2p.transport.circuit import CircuitConnection

        with trio.move_on_after(self._timeout) as timer:
            wish = await messages.receive(stream, pb.StopMessage)
            status, source = self._judge(stream, wish)
            await messages.send(stream, pb.StopMessage(type=pb.StopMessage.STATUS, status=status))
        if timer.cancelled_caught:
            raise StreamReset(f"{stream.peer_id} opened a circuit and did not say for whom")
        if source is None:
            return
        assert stream.connection is not None
        raw = CircuitConnection(stream, stream.connection.remote_maddr, _limit_in(wish.limit), initiator=False)
        try:
            connection = await self._host.adopt(raw, source, as_client=False)
        except TransportError as error:
            raise StreamReset(f"the circuit from {source} through {stream.peer_id} came to nothing: {error}") from error
        self._taken(connection)
        await connection.ended.wait()

    def _judge(self, stream: Stream, wish: pb.StopMessage) -> tuple[pb.Status, PeerID | None]:
        """What to answer to a relay, and who is at the other end, if that is yes."""
        if wish.type != pb.StopMessage.CONNECT:
            return pb.UNEXPECTED_MESSAGE, None
        if stream.peer_id not in self.relays or stream.connection is None or stream.connection.relay is not None:
            return pb.PERMISSION_DENIED, None
        try:
            source = PeerID(wish.peer.id)
        except ValueError:
            return pb.MALFORMED_MESSAGE, None
        return (pb.OK, source) if source != self._host.peer_id else (pb.PERMISSION_DENIED, None)

    def __repr__(self) -> str:
        return f"<RelayClient with {len(self.relays)} relays>"


async def _drop(stream: Stream | None) -> None:
    if stream is not None:
        await stream.reset()


def _limit_in(message: pb.Limit) -> CircuitLimit | None:
    if not message.duration and not message.data:
        return None
    unlimited = CircuitLimit()
    return CircuitLimit(message.duration or unlimited.seconds, message.data or unlimited.size)


def _in_words(status: int) -> str:
    words: dict[int, str] = {
        pb.NO_RESERVATION: "the peer has no reservation there, it may have gone",
        pb.RESOURCE_LIMIT_EXCEEDED: "too many circuits are open",
        pb.RESERVATION_REFUSED: "it has no room for us",
        pb.CONNECTION_FAILED: "the peer does not answer it",
        pb.PERMISSION_DENIED: "it does not serve us",
    }
    return words.get(status, f"status {status}")
