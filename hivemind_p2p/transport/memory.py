"""A network in memory: a libp2p ``ITransport``, so that real hosts, with real Noise and Yamux, run without sockets.

Under trio's ``MockClock`` a day of such a network takes seconds. Bytes wait in bounded queues, as in a socket, so that
what blocks on a slow reader there blocks here too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from libp2p.abc import IListener, IRawConnection, ITransport
from multiaddr import Multiaddr

from hivemind_p2p.errors import ListenError, TransportError
from hivemind_p2p.transport.addresses import endpoint_of, maddr_of, split_peer
from hivemind_p2p.transport.raw import RawConnection

_QUEUED_WRITES: Final = 64
_FIRST_PORT: Final = 49152

Handler = Callable[[RawConnection], Awaitable[None]]
Address = tuple[str, int]


class MemoryWire:
    """What the hosts of one test share.

    Args:
        latency: seconds that bytes travel one way.
    """

    def __init__(self, *, latency: float = 0.0) -> None:
        self.latency = latency
        self.silent: set[str] = set()
        """IP addresses where dials are neither answered nor refused."""
        self.listeners: dict[Address, MemoryListener] = {}
        self._last_port = _FIRST_PORT

    def transport(self, ip: str) -> MemoryTransport:
        """A transport for a host whose only interface has this IP address."""
        return MemoryTransport(self, ip)

    def free_port(self) -> int:
        """A port that was not used before."""
        self._last_port += 1
        return self._last_port

    def __repr__(self) -> str:
        return f"<MemoryWire with {len(self.listeners)} listeners>"


class MemoryTransport(ITransport):
    """One host's access to a :class:`MemoryWire`; give it to ``Host(transport=...)``."""

    def __init__(self, wire: MemoryWire, ip: str) -> None:
        self._wire = wire
        self._ip = ip

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """Connect, after one round trip.

        Raises:
            TransportError: nobody listens there.
        """
        endpoint = endpoint_of(split_peer(maddr)[0])
        if endpoint is None:
            raise TransportError(f"{maddr} is not a TCP address")
        if endpoint.host in self._wire.silent:
            await trio.sleep_forever()
        await trio.sleep(2 * self._wire.latency)
        listener = self._wire.listeners.get((endpoint.host, endpoint.port))
        if listener is None:
            raise TransportError("connection refused")
        ours, theirs = _pair(self._wire.latency)
        here = maddr_of(self._ip, self._wire.free_port())
        listener.accept(RawConnection(theirs, here, initiator=False))
        return RawConnection(ours, split_peer(maddr)[0], initiator=True)

    def create_listener(self, handler_function: Callable[..., Awaitable[None]]) -> MemoryListener:
        return MemoryListener(self._wire, self._ip, handler_function)

    def can_dial(self, maddr: Multiaddr) -> bool:
        return endpoint_of(split_peer(maddr)[0]) is not None

    def can_listen(self, maddr: Multiaddr) -> bool:
        return endpoint_of(maddr) is not None

    def protocols(self) -> list[str]:
        return ["tcp"]


class MemoryListener(IListener):
    """Hands each connection to ``handler``, in a task of ``background_nursery``."""

    background_nursery: trio.Nursery

    def __init__(self, wire: MemoryWire, ip: str, handler: Handler) -> None:
        self._wire = wire
        self._ip = ip
        self._handler = handler
        self._address: Address | None = None

    async def listen(self, maddr: Multiaddr) -> None:
        """Raises ListenError: the address is taken, or not this host's."""
        await trio.lowlevel.checkpoint()
        endpoint = endpoint_of(maddr)
        if endpoint is None or endpoint.host != self._ip:
            raise ListenError(f"cannot listen on {maddr}: the address of this host is {self._ip}")
        address = (endpoint.host, endpoint.port or self._wire.free_port())
        if address in self._wire.listeners:
            raise ListenError(f"cannot listen on {maddr}: another host listens there; choose another port")
        self._address = address
        self._wire.listeners[address] = self

    def accept(self, raw: RawConnection) -> None:
        """A dial arrived."""
        self.background_nursery.start_soon(self._handler, raw)

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return () if self._address is None else (maddr_of(*self._address),)

    async def close(self) -> None:
        if self._address is not None:
            self._wire.listeners.pop(self._address, None)
        await trio.lowlevel.checkpoint()

    def __repr__(self) -> str:
        return f"<MemoryListener on {self._address}>"


class _MemoryStream(trio.abc.Stream):
    """One end of a connection: a queue of ``(when it arrives, bytes)`` in each direction."""

    def __init__(
        self,
        outgoing: trio.MemorySendChannel[tuple[float, bytes]],
        incoming: trio.MemoryReceiveChannel[tuple[float, bytes]],
        latency: float,
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._latency = latency
        self._rest = b""
        self._sending = trio.Lock()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        async with self._sending:
            await self._outgoing.send((trio.current_time() + self._latency, bytes(data)))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._rest:
            try:
                arrival, self._rest = await self._incoming.receive()
            except trio.EndOfChannel:
                return b""
            with trio.CancelScope(shield=True):  # what was taken from the queue must not be lost to a cancellation
                await trio.sleep_until(arrival)
        size = len(self._rest) if max_bytes is None else max_bytes
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    async def aclose(self) -> None:
        self._outgoing.close()
        self._incoming.close()
        await trio.lowlevel.checkpoint()


def _pair(latency: float) -> tuple[_MemoryStream, _MemoryStream]:
    to_b = trio.open_memory_channel[tuple[float, bytes]](_QUEUED_WRITES)
    to_a = trio.open_memory_channel[tuple[float, bytes]](_QUEUED_WRITES)
    return _MemoryStream(to_b[0], to_a[1], latency), _MemoryStream(to_a[0], to_b[1], latency)
