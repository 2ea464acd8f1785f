"""What the tests of the muxer share: muxers over memory, without a handshake, and peers that send what they like."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConnectionLost
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.link import link_over
from hivemind_p2p.transport.memory import _pair
from hivemind_p2p.transport.muxer import MuxedStream
from hivemind_p2p.transport.noise.channel import Keys, SecureChannel
from hivemind_p2p.transport.yamux.frames import HEADER_SIZE
from hivemind_p2p.transport.yamux.muxer import YamuxMuxer
from hivemind_p2p.transport.yamux.stream import YamuxStream
from hivemind_p2p.wire.peer_id import PeerID
from tests.transport.yamux.sessions import parse

ONE, OTHER = Identity.generate().peer_id, Identity.generate().peer_id
KEYS = Keys(bytes(32), b"\1" * 32)
REVERSED = Keys(KEYS.receive, KEYS.send)


class Faulty(trio.abc.Stream):
    """A stream whose faults can be chosen."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.deaf = False
        """Nothing is received any more, and so in the end nothing can be sent to it."""
        self.flip = False
        """The next bytes received have one bit wrong."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.deaf:
            await trio.sleep_forever()
        data = await self._stream.receive_some(max_bytes)
        if self.deaf:
            await trio.sleep_forever()
        if self.flip and data:
            self.flip = False
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class AcceptingMuxer(YamuxMuxer):
    """A muxer whose streams wait until a test takes them, one by one."""

    def __init__(
        self, channel: SecureChannel, peer_id: PeerID, *, initiator: bool, settings: TransportSettings
    ) -> None:
        super().__init__(channel, peer_id, initiator=initiator, settings=settings)
        self._arrive, self._arrived = trio.open_memory_channel[MuxedStream](math.inf)

    async def run(self, on_stream: Callable[[MuxedStream], None] | None = None) -> None:
        with self._arrive:
            await super().run(on_stream or self._arrive.send_nowait)

    async def accept_stream(self) -> YamuxStream:
        """The next stream that the peer opened; raises ConnectionLost."""
        try:
            return await self._arrived.receive()
        except trio.EndOfChannel:
            raise self.lost() from None


@dataclass
class Pair:
    """Two muxers that run, and the wires under them."""

    one: AcceptingMuxer
    other: AcceptingMuxer
    one_end: Faulty
    other_end: Faulty
    nursery: trio.Nursery

    async def streams(self) -> tuple[YamuxStream, YamuxStream]:
        """A stream from one to the other, and its other end."""
        here = await self.one.open_stream()
        await here.send_all(b"?")
        there = await self.other.accept_stream()
        assert await there.read_exactly(1) == b"?"
        return here, there


@asynccontextmanager
async def two_muxers(settings: TransportSettings | None = None, *, latency: float = 0.0) -> AsyncIterator[Pair]:
    settings = settings or TransportSettings()
    one_end, other_end = map(Faulty, _pair(latency))
    one = AcceptingMuxer(SecureChannel(link_over(one_end), KEYS), OTHER, initiator=True, settings=settings)
    other = AcceptingMuxer(SecureChannel(link_over(other_end), REVERSED), ONE, initiator=False, settings=settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(other.run)
        yield Pair(one, other, one_end, other_end, nursery)
        nursery.cancel_scope.cancel()


async def read_until_it_fails(stream: YamuxStream) -> None:
    while await stream.receive_some():
        pass


@dataclass
class RawPeer:
    """The other end of a muxer, which speaks in frames of the test's choice."""

    channel: SecureChannel
    heard: bytearray = field(default_factory=bytearray)

    async def say(self, *data: bytes) -> None:
        await self.channel.send_all(b"".join(data))

    async def hear(self, frames: int) -> list[tuple[int, int, int, int]]:
        """The next frames, without payloads, that the muxer sends."""
        while len(self.heard) < frames * HEADER_SIZE:
            self.heard += b"".join(await self.channel.receive())
        return parse(bytes(self.heard))

    async def hear_all(self) -> list[tuple[int, int, int, int]]:
        """All that the muxer says until it hangs up."""
        while True:
            try:
                self.heard += b"".join(await self.channel.receive())
            except ConnectionLost:
                return parse(bytes(self.heard))


@asynccontextmanager
async def against(settings: TransportSettings | None = None) -> AsyncIterator[tuple[AcceptingMuxer, RawPeer]]:
    """A muxer that was dialled, and who dialled it."""
    here, there = _pair(0.0)
    muxer = AcceptingMuxer(
        SecureChannel(link_over(here), KEYS), OTHER, initiator=False, settings=settings or TransportSettings()
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxer.run)
        yield muxer, RawPeer(SecureChannel(link_over(there), REVERSED))
        nursery.cancel_scope.cancel()
