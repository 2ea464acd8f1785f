"""A stream through a relay as a raw connection, to be secured and multiplexed like any other."""

from __future__ import annotations

import trio
from multiaddr import Multiaddr

from hivemind_p2p.errors import StreamError
from hivemind_p2p.transport.addresses import circuit_maddr
from hivemind_p2p.transport.api import CircuitLimit, Stream
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.wire.peer_id import PeerID


class CircuitConnection(RawConnection):
    """A circuit, before it is secured.

    Args:
        stream: to the relay, which carries it on to the peer.
        relay_maddr: where the relay is, as we know it.
        limit: what the relay puts up with; None: anything.
    """

    def __init__(
        self, stream: Stream, relay_maddr: Multiaddr | None, limit: CircuitLimit | None, *, initiator: bool
    ) -> None:
        super().__init__(_CircuitStream(stream), circuit_maddr(stream.peer_id, relay_maddr), initiator=initiator)
        self.relay: PeerID = stream.peer_id
        self.limit = limit


class _CircuitStream(trio.abc.Stream):
    """Our stream with the failures of a socket."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except StreamError as error:
            raise trio.BrokenResourceError(f"the circuit broke: {error}") from error

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await self._stream.receive_some(max_bytes)
        except StreamError as error:
            raise trio.BrokenResourceError(f"the circuit broke: {error}") from error

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        except StreamError:
            await self._stream.reset()
        except BaseException:
            await self._stream.reset()
            raise

    def __repr__(self) -> str:
        return f"<circuit over {self._stream!r}>"
