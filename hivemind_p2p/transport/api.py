"""What the floors above see of the transport: streams, connections, and the network that opens them.

No libp2p here, so that everything above can run over real sockets (``transport.host``) or over plain memory
(``hivemind_p2p.testing``) without noticing.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import trio
from multiaddr import Multiaddr

from hivemind_p2p.errors import StreamEnded
from hivemind_p2p.wire.peer_id import PeerID

AGENT: Final = "hivemind-p2p"
"""How nodes of this package call themselves."""
StreamHandler = Callable[["Stream"], Awaitable[None]]
PeerResolver = Callable[[PeerID], Awaitable[Sequence[Multiaddr]]]


class Stream(trio.abc.HalfCloseableStream, abc.ABC):
    """One bidirectional stream to one peer, speaking one protocol.

    A ``trio.abc.HalfCloseableStream``: ``send_all``, ``receive_some`` (``b""`` at the end), ``send_eof``, ``aclose``.
    ``aclose`` ends both halves gently, once everything was written; ``reset`` throws the stream away and tells the
    peer. Failures are :class:`~hivemind_p2p.errors.StreamError` and nothing else, besides ``ProtocolNotSupported`` when
    the peer refuses what it seemed to speak (see :meth:`Connection.open_stream`), and trio's own for misuse:
    ``ClosedResourceError`` for a stream that we closed, ``BusyResourceError`` for two readers or two writers at once.
    Cancelling any operation leaves the connection usable; the stream itself may then only be reset.

    A small call would spend more on the scheduler than on its bytes, so there are operations that wait for nothing:
    :meth:`send_nowait`, :meth:`receive_nowait`, :meth:`when_readable`, :meth:`close`.
    """

    peer_id: PeerID
    protocol: str
    connection: Connection | None = None
    """What carries it, where the network has connections of its own."""

    @abc.abstractmethod
    def close(self) -> None:
        """:meth:`aclose`, which has nothing to wait for."""

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint_if_cancelled()

    def send_nowait(self, data: bytes | bytearray, *, last: bool = False) -> bool:
        """Send all of ``data``, and :meth:`close` if it is the ``last``, where that takes no waiting.

        Returns:
            Whether it was sent; False: nothing was, use :meth:`send_all`.

        Raises:
            StreamError
        """
        return False

    def receive_nowait(self, max_bytes: int) -> bytes:
        """What has come and was not read; ``b""``: nothing, or :meth:`receive_some` will tell what is wrong."""
        return b""

    @abc.abstractmethod
    def when_readable(self, callback: Callable[[], object] | None) -> None:
        """Call ``callback()`` once, when there is something to read: bytes, the end, or a failure. At once if there is
        already. It takes the place of the one that was given before. Not while a task reads.

        Args:
            callback: runs in the middle of the network's work, must be quick and raise nothing; None: call nothing.
        """

    @abc.abstractmethod
    async def reset(self) -> None:
        """Throw the stream away: the peer's reads and writes fail with ``StreamReset``. Never raises, never blocks."""

    async def read_into(self, buffer: memoryview) -> None:
        """Fill the whole of ``buffer`` (writable, contiguous bytes).

        Raises:
            StreamEnded: the peer ended its half first.
        """
        filled = 0
        while filled < len(buffer):
            data = await self.receive_some(len(buffer) - filled)
            if not data:
                raise StreamEnded(f"{self.peer_id} ended the stream {filled} bytes into an expected {len(buffer)}")
            buffer[filled : filled + len(data)] = data
            filled += len(data)

    async def read_exactly(self, size: int) -> bytes:
        """Read ``size`` bytes.

        Raises:
            StreamEnded: the peer ended its half first.
        """
        buffer = bytearray(size)
        await self.read_into(memoryview(buffer))
        return bytes(buffer)


@dataclass(frozen=True)
class CircuitLimit:
    """What a relay puts up with on one circuit before it ends it."""

    seconds: float = math.inf
    size: float = math.inf
    """Bytes in each direction."""


class Traffic(NamedTuple):
    """Bytes that a connection has carried, before they were encrypted, with what its multiplexer adds."""

    received: int
    sent: int


@dataclass(frozen=True)
class PeerDescription:
    """What a peer says about itself (identify): hints, all of it."""

    agent: str = ""
    protocols: frozenset[str] = frozenset()
    maddrs: tuple[Multiaddr, ...] = ()
    """Where it listens, without ``/p2p``; those that are worth remembering."""
    observed: Multiaddr | None = None
    """Where our connection comes from, as the peer sees it."""

    @property
    def is_of_our_kind(self) -> bool:
        """Whether the peer runs this package too, as it says."""
        return self.agent.startswith(AGENT)


class Connection(abc.ABC):
    """One secured, multiplexed connection to one peer."""

    peer_id: PeerID
    remote_maddr: Multiaddr | None
    """The address at the other end, without ``/p2p``; None when it cannot be known."""
    outbound: bool
    """Whether we dialled it."""
    opened_at: float
    """When the handshake was done, in ``trio.current_time``."""
    relay: PeerID | None = None
    """The relay that it goes through; None when it is direct."""
    limit: CircuitLimit | None = None
    """What the relay puts up with; None when nobody limits it."""
    description: PeerDescription | None = None
    """What the peer says about itself, once it has."""

    @property
    @abc.abstractmethod
    def closed(self) -> bool:
        """Whether it can carry no more streams."""

    @property
    @abc.abstractmethod
    def traffic(self) -> Traffic:
        """What it has carried so far."""

    @abc.abstractmethod
    async def open_stream(self, protocol: str) -> Stream:
        """Open a stream for a protocol.

        A peer that is known to speak it is not waited for: the stream is there at once, and the peer hears of it with
        the first write, or soon. Should it refuse, then the first read raises ``ProtocolNotSupported`` (or a write that
        it cut short), and nothing was executed.

        Raises:
            ProtocolNotSupported, StreamError
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close it and every stream on it."""


class Network(Protocol):
    """How a node reaches others; implemented by ``transport.host.Host`` and by ``testing.MemoryNetwork``."""

    @property
    def peer_id(self) -> PeerID: ...

    @property
    def visible_maddrs(self) -> Sequence[Multiaddr]:
        """Addresses that others can dial, each ending in ``/p2p/<our id>``."""

    async def connect(self, maddr: Multiaddr) -> PeerID:
        """Connect to the peer at ``maddr`` (which ends in ``/p2p/<id>``) unless we are connected; return its id.

        Raises:
            DialError
        """

    async def open_stream(self, peer_id: PeerID, protocol: str, *, carries: int = 0) -> Stream:
        """Open a stream to a peer, connecting first when needed.

        Args:
            carries: bytes that are to go over it in one direction, the more of the two, as far as that is known.

        Raises:
            DialError, ProtocolNotSupported, StreamError
            RelayLimited: only a relay leads to the peer that does not carry so much.
        """

    def set_stream_handler(self, protocol: str, handler: StreamHandler | None) -> None:
        """Serve a protocol; ``None`` stops serving it. The handler owns the stream; when it returns or raises, the
        stream is closed or reset for it."""

    def connections(self, peer_id: PeerID | None = None) -> Sequence[Connection]:
        """Open connections, to one peer or to all."""

    def add_addresses(self, peer_id: PeerID, maddrs: Iterable[Multiaddr]) -> None:
        """Remember where a peer may be reached (bounded per peer; hints, never trusted)."""

    def addresses(self, peer_id: PeerID) -> Sequence[Multiaddr]:
        """The addresses remembered for a peer, best first, without ``/p2p``."""

    def set_peer_resolver(self, resolver: PeerResolver | None) -> None:
        """Ask ``resolver`` for addresses of a peer when none that we know of answers."""
