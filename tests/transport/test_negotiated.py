"""Streams that are used before the peer has agreed to the protocol, and what happens when it does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from hivemind_p2p.errors import ProtocolNotSupported, StreamError, StreamReset
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.negotiate import GREETING, Asking, line
from hivemind_p2p.transport.negotiated import NegotiatedStream
from tests.transport.hosts import ECHO, roundtrip
from tests.transport.test_memory import pair
from tests.transport.yamux.muxers import AcceptingMuxer, two_muxers


@asynccontextmanager
async def acquainted(latency: float = 0.01) -> AsyncIterator[tuple[Host, Host]]:
    """Two hosts, the first of which knows what the second speaks."""
    async with pair(latency) as (_, one, two):
        await one.connect(two.visible_maddrs[0])
        await trio.sleep(1)
        yield one, two


async def test_who_serves_it_no_more_refuses_at_the_first_read_and_executes_nothing(autojump_clock):
    async with acquainted() as (one, two):
        two.set_stream_handler(ECHO, None)
        stream = await one.open_stream(two.peer_id, ECHO)
        await stream.send_all(b"do it")
        for _ in range(2):
            with pytest.raises(ProtocolNotSupported, match=ECHO):
                await stream.read_exactly(5)
        await stream.aclose()
        with pytest.raises(ProtocolNotSupported, match=ECHO):
            await one.open_stream(two.peer_id, ECHO)  # by now it is known
        two.set_stream_handler(ECHO, lambda stream: stream.send_all(b"back"))
        async with await one.open_stream(two.peer_id, ECHO) as stream:
            assert await stream.read_exactly(4) == b"back"
        assert len(one.connections()) == 1


async def test_a_write_that_the_refusal_cuts_short_says_so(autojump_clock):
    async with acquainted() as (one, two):
        two.set_stream_handler(ECHO, None)
        stream = await one.open_stream(two.peer_id, ECHO)
        with pytest.raises(ProtocolNotSupported, match=ECHO):
            await stream.send_all(bytes(5_000_000))
        await stream.reset()


async def test_when_one_writes_and_one_reads_the_reader_hears_of_the_refusal(autojump_clock):
    async with two_muxers() as pair:
        for _ in range(20):  # which of the two wakes first is up to chance
            asking = Asking(ECHO)
            inner = await pair.one.open_stream()
            stream = NegotiatedStream(inner, ECHO, unsent=asking.opening, asking=asking)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_in_vain, stream)
                nursery.start_soon(refuse_and_reset, pair.other)
                with pytest.raises(ProtocolNotSupported, match=ECHO):
                    await stream.receive_some()
            await stream.reset()


async def refuse_and_reset(muxer: AcceptingMuxer) -> None:
    """Both in one packet."""
    stream = await muxer.accept_stream()
    await trio.testing.wait_all_tasks_blocked()
    muxer.session.send(stream.state, memoryview(line(GREETING) + line("na")))
    await stream.reset()


async def write_in_vain(stream: Stream) -> None:
    with pytest.raises((StreamReset, ProtocolNotSupported)):
        await stream.send_all(bytes(5_000_000))


async def test_a_reset_that_is_no_refusal_stays_one(autojump_clock):
    async with acquainted() as (one, two):
        two.set_stream_handler(ECHO, lambda stream: stream.reset())
        stream = await one.open_stream(two.peer_id, ECHO)
        with pytest.raises(StreamReset):
            await stream.send_all(bytes(5_000_000))
        with pytest.raises(StreamReset):
            await stream.receive_some()


async def test_each_stream_is_served_once(autojump_clock):
    served = []

    async def count(stream: Stream) -> None:
        served.append(await stream.read_exactly(1))

    async with acquainted() as (one, two):
        two.set_stream_handler(ECHO, count)
        for number in range(5):
            async with await one.open_stream(two.peer_id, ECHO) as stream:
                await stream.send_all(bytes([number]))
                assert await stream.receive_some() == b""
        assert served == [bytes([number]) for number in range(5)]


async def test_the_peer_may_speak_first(autojump_clock):
    async with acquainted() as (one, two):
        two.set_stream_handler(ECHO, lambda stream: stream.send_all(b"welcome"))
        stream = await one.open_stream(two.peer_id, ECHO)
        assert await stream.read_exactly(7) == b"welcome"
        assert await stream.receive_some() == b""


async def test_an_end_alone_is_heard(autojump_clock):
    async with acquainted() as (one, two):
        stream = await one.open_stream(two.peer_id, ECHO)
        await stream.send_eof()
        assert await stream.receive_some() == b""


async def test_a_stream_that_is_never_used_is_never_heard_of(autojump_clock):
    heard = []

    async def note(stream: Stream) -> None:
        heard.append(stream)

    async with acquainted() as (one, two):
        two.set_stream_handler(ECHO, note)
        await (await one.open_stream(two.peer_id, ECHO)).aclose()
        await (await one.open_stream(two.peer_id, ECHO)).reset()
        await trio.sleep(1)
        assert heard == []


async def test_a_stream_that_is_not_used_at_once_is_heard_of_all_the_same(autojump_clock):
    heard = trio.Event()

    async def note(stream: Stream) -> None:
        heard.set()

    async with acquainted() as (one, two):
        two.set_stream_handler(ECHO, note)
        before = trio.current_time()
        stream = await one.open_stream(two.peer_id, ECHO)
        await heard.wait()
        assert trio.current_time() - before <= 0.05
        assert await stream.receive_some() == b""


async def test_two_first_readers_at_once_are_a_mistake_that_is_named(autojump_clock):
    async with acquainted() as (one, two):
        stream = await one.open_stream(two.peer_id, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await stream.receive_some()
            await stream.send_all(b"x")


async def test_a_cancelled_first_read_loses_nothing(autojump_clock):
    async with acquainted(latency=1.0) as (one, two):
        stream = await one.open_stream(two.peer_id, ECHO)
        await stream.send_all(b"slowly")
        for _ in range(3):
            with trio.move_on_after(0.6):
                await stream.receive_some()
        assert await stream.read_exactly(6) == b"slowly"


@pytest.mark.parametrize("size", [1, 1000, 70_000, 3_000_000])
async def test_reading_and_writing_begin_at_once(autojump_clock, size):
    data = bytes(range(250)) * (size // 250 + 1)
    async with acquainted() as (one, two):
        stream = await one.open_stream(two.peer_id, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            assert await stream.read_exactly(len(data)) == data
        await stream.send_eof()
        assert await stream.receive_some(1) == b""


async def test_what_came_with_the_negotiation_is_read_first(autojump_clock):
    got = []

    async def read(stream: Stream) -> None:
        got.append(await stream.receive_some(3))
        buffer = bytearray(100_000)
        await stream.read_into(memoryview(buffer))
        got.append(buffer.strip(b"\0"))
        await stream.send_all(b"done")

    async with acquainted() as (one, two):
        two.set_stream_handler(ECHO, read)
        async with await one.open_stream(two.peer_id, ECHO) as stream:
            await stream.send_all(b"onetwo")
            await stream.send_all(bytes(100_000 - 3) + b"next")
            assert await stream.read_exactly(4) == b"done"
        assert got == [b"one", b"two"]


async def test_who_waits_for_the_answer_before_it_speaks_gets_it(autojump_clock):
    """As other implementations do: greeting, wait, wish, wait, request."""
    async with acquainted() as (one, _):
        [connection] = one.connections()
        stream = await connection._muxer.open_stream()
        await stream.send_all(line(GREETING))
        assert await stream.read_exactly(20) == line(GREETING)
        await stream.send_all(line("/nothing"))
        assert await stream.read_exactly(4) == line("na")
        await stream.send_all(line(ECHO))
        assert await stream.read_exactly(len(line(ECHO))) == line(ECHO)
        await stream.send_all(b"request")
        assert await stream.read_exactly(7) == b"request"


async def test_a_peer_that_hangs_up_instead_of_agreeing_is_named(autojump_clock):
    async with acquainted() as (one, two):
        two.set_stream_handler(ECHO, lambda stream: stream._inner.aclose())
        stream = await one.open_stream(two.peer_id, ECHO)
        await stream.send_all(b"x")
        with pytest.raises(StreamError, match="instead of agreeing"):
            await stream.receive_some()
        assert repr(stream).startswith("<Stream ")
        two.set_stream_handler(ECHO, lambda stream: stream.send_all(b"ping"))
        assert await roundtrip(one, two) == b"ping"
