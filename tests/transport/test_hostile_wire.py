"""Wires that lie: flipped bits, bytes cut off, messages lost, repeated, swapped, reflected and invented.

Whatever it is, and wherever in a connection's life: nothing wrong is ever delivered, whoever waits gets one typed error
in bounded time, and the connection is closed and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from libp2p.abc import IRawConnection
from multiaddr import Multiaddr
from trio.testing import MockClock

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConnectionLost, HivemindError
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.link import Link
from hivemind_p2p.transport.memory import MemoryTransport, MemoryWire
from hivemind_p2p.transport.noise.channel import SecureChannel
from hivemind_p2p.transport.noise.cipher import Sealer, sealed_size, split
from hivemind_p2p.transport.raw import RawConnection
from tests.transport.hosts import ECHO, echo, roundtrip
from tests.transport.yamux.muxers import KEYS, ONE, AcceptingMuxer
from tests.transport.yamux.sessions import output, session

SIZES = (1, 10, 3000, 70_000, 500)
TEXT = bytes(range(256)) * 300


def conversation(key: bytes) -> list[bytes]:
    """What a peer sends that opens one stream and says TEXT on it, as encrypted packets."""
    one, sealer, packets, position = session(), Sealer(key), [], 0
    stream = one.open_stream(0.0)
    for size in SIZES:
        one.send(stream, memoryview(TEXT)[position : position + size])
        position += size
        messages = split([output(one)])
        target = bytearray(sealed_size(messages))
        sealer.seal(messages, memoryview(target))
        packets.append(bytes(target))
    return packets


SENT = conversation(KEYS.receive)
WIRE = b"".join(SENT)
PACKETS = [*SENT, *conversation(KEYS.send), *conversation(bytes(range(32)))]
"""What was sent; the same from the other direction; and from another connection."""

places = st.one_of(st.integers(0, len(WIRE) - 1), st.integers(0, 200))
lies = st.one_of(
    st.tuples(st.just("flip"), places, st.integers(0, 7)),
    st.tuples(st.just("cut off"), places),
    st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=100)),
    st.tuples(st.just("rearrange"), st.lists(st.integers(0, len(PACKETS) - 1), max_size=8)),
)


def wire_with(lie) -> bytes:
    match lie:
        case ("flip", place, bit):
            return WIRE[:place] + bytes([WIRE[place] ^ 1 << bit]) + WIRE[place + 1 :]
        case ("cut off", place):
            return WIRE[:place]
        case ("insert", place, data):
            return WIRE[:place] + data + WIRE[place:]
        case ("rearrange", numbers):
            return b"".join(PACKETS[number] for number in numbers)
    raise AssertionError(lie)


class Recorded(Link):
    """Plays what a peer sent, in pieces; then ends, or falls silent."""

    def __init__(self, data: bytes, pieces: Sequence[int], *, ends: bool) -> None:
        self._rest = data
        self._pieces = list(pieces)
        self._ends = ends
        self.closed = trio.Event()

    async def receive(self, head: bytes) -> memoryview:
        await trio.lowlevel.checkpoint()
        if self.closed.is_set():
            raise trio.ClosedResourceError
        size = self._pieces.pop() if self._pieces else len(self._rest)
        data, self._rest = self._rest[:size], self._rest[size:]
        if not data and not self._ends:
            await self.closed.wait()
            raise trio.ClosedResourceError
        return memoryview(head + data)

    def send_now(self, data: memoryview) -> int:
        return len(data)

    async def send_some(self, data: memoryview) -> int:
        raise AssertionError("send_now takes everything")

    def abort(self) -> None:
        pass

    async def aclose(self) -> None:
        self.closed.set()


async def listen_to(link: Recorded) -> bytes:
    """What a muxer makes of it."""
    muxer = AcceptingMuxer(SecureChannel(link, KEYS), ONE, initiator=False, settings=TransportSettings())
    heard = bytearray()
    reasons = set()

    async def expect_loss(use, *arguments) -> None:
        with pytest.raises(ConnectionLost) as failure:
            await use(*arguments)
        reasons.add(str(failure.value))

    async def accept(nursery) -> None:
        while True:  # more than one only if somebody invents them
            nursery.start_soon(expect_loss, read, await muxer.accept_stream())

    async def read(stream) -> None:
        while data := await stream.receive_some():
            heard.extend(data)

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_loss, accept, nursery)
            await muxer.run()
    assert muxer.closed
    assert link.closed.is_set()
    assert len(reasons) == 1
    return bytes(heard)


@settings(max_examples=200)
@given(lies, st.lists(st.integers(1, 40_000), max_size=30), st.booleans())
def test_whatever_a_wire_makes_of_a_conversation_its_beginning_is_heard_and_then_one_error(lie, pieces, ends):
    data, whole = wire_with(lie), 0
    heard = trio.run(listen_to, Recorded(data, pieces, ends=ends), clock=MockClock(autojump_threshold=0))
    assert TEXT.startswith(heard)
    while data.startswith(b"".join(SENT[: whole + 1])) and whole < len(SENT):
        whole += 1  # packets that came as they were sent
    if lie[0] == "cut off":  # otherwise, what comes in one piece with a lie is not believed either
        assert len(heard) >= sum(SIZES[:whole])
    assert len(heard) <= sum(SIZES[: whole + 1])


class LyingTransport(MemoryTransport):
    """Makes connections on which one byte of one direction is changed, or after which nothing comes, or the end."""

    lie: tuple[str, bool, int] | None = None

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        raw = await super().dial(maddr)
        assert isinstance(raw, RawConnection)
        if self.lie is not None:
            raw.stream = Liar(raw.stream, *self.lie)
        return raw


class Liar(trio.abc.Stream):
    def __init__(self, stream: trio.abc.Stream, kind: str, on_receive: bool, place: int) -> None:
        self._stream = stream
        self._kind, self._on_receive, self._place = kind, on_receive, place

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self._stream.receive_some(max_bytes)
        return await self._lie(data) if self._on_receive else data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(bytes(data) if self._on_receive else await self._lie(bytes(data)))

    async def _lie(self, data: bytes) -> bytes:
        place, self._place = self._place, self._place - len(data)
        if place >= len(data) or (place < 0 and self._kind == "flip"):
            return data
        place = max(place, 0)
        if self._kind == "flip":
            return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
        if self._kind == "end":
            await self._stream.aclose()
            raise trio.BrokenResourceError("cut off")
        await trio.sleep_forever()
        raise AssertionError

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


anywhere = st.one_of(st.integers(0, 1500), st.integers(0, 10**5))


async def live(kind: str, on_receive: bool, place: int) -> None:
    """Connect, identify, call and be called; then once more over a wire that does not lie."""
    wire = MemoryWire()
    transport = LyingTransport(wire, "10.0.0.1")
    transport.lie = (kind, on_receive, place)
    listen = [Multiaddr("/ip4/10.0.0.2/tcp/4001")]
    async with (
        Host(Identity.generate(), transport=transport) as one,
        Host(Identity.generate(), transport=wire.transport("10.0.0.2"), host_maddrs=listen) as two,
    ):
        one.set_stream_handler(ECHO, echo)
        two.set_stream_handler(ECHO, echo)
        with trio.fail_after(200):
            try:
                await one.connect(two.visible_maddrs[0])
                assert await roundtrip(one, two, TEXT) == TEXT
                assert await roundtrip(two, one, TEXT) == TEXT
            except HivemindError:
                pass
            await trio.sleep(100)  # who still believes in the connection finds out
            transport.lie = None
            assert len(one.connections()) == len(two.connections())
            await one.connect(two.visible_maddrs[0])
            assert await roundtrip(one, two, TEXT) == TEXT
            assert await roundtrip(two, one) == b"ping"
        assert len(one.connections()) == len(two.connections()) == 1
        assert len(one._handshakes) == len(two._handshakes) == 0


@example("flip", False, 64)
@example("flip", True, 282)
@settings(max_examples=100)
@given(st.sampled_from(["flip", "end", "silence"]), st.booleans(), anywhere)
def test_a_lie_at_any_place_costs_a_connection_and_no_more(kind, on_receive, place):
    trio.run(live, kind, on_receive, place, clock=MockClock(autojump_threshold=0))
