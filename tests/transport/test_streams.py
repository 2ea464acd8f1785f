"""Streams between two hosts over real sockets."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from hivemind_p2p.errors import ConnectionLost, ProtocolNotSupported, StreamEnded, StreamReset
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.transport.yamux.muxer import YamuxMuxer
from tests.transport.hosts import ECHO, roundtrip, two_hosts


async def test_several_megabytes_come_back_as_they_were():
    data = os.urandom(5_000_000)
    async with two_hosts() as (server, client):
        stream = await client.open_stream(server.peer_id, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            assert await stream.read_exactly(len(data)) == data
        await stream.send_eof()
        assert await stream.receive_some() == b""


async def test_many_streams_at_once_share_one_connection():
    async with two_hosts() as (server, client):

        async def one(number: int) -> None:
            data = bytes([number % 256]) * 1000
            assert await roundtrip(client, server, data) == data

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(one, number)
        assert len(client.connections()) == len(server.connections()) == 1


async def test_either_half_can_end_first():
    async with two_hosts() as (server, client):
        heard = bytearray()

        async def talk_then_listen(stream: Stream) -> None:
            await stream.send_all(b"all that I say")
            await stream.send_eof()
            while data := await stream.receive_some():
                heard.extend(data)

        server.set_stream_handler("/talk", talk_then_listen)
        async with await client.open_stream(server.peer_id, "/talk") as stream:
            assert await stream.read_exactly(14) == b"all that I say"
            assert await stream.receive_some() == b""
            await stream.send_all(b"and I")
            await stream.send_eof()
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"more")
        assert await roundtrip(client, server) == b"ping"
        assert heard == b"and I"


async def test_reading_past_the_end_says_how_far_it_came():
    async with two_hosts() as (server, client):
        stream = await client.open_stream(server.peer_id, ECHO)
        await stream.send_all(b"four")
        await stream.send_eof()
        with pytest.raises(StreamEnded, match="4 bytes into an expected 10"):
            await stream.read_exactly(10)


async def test_reset_reaches_the_other_side():
    async with two_hosts() as (server, client):
        outcome, seen = [], trio.Event()

        async def reader(stream: Stream) -> None:
            try:
                await stream.read_exactly(100)
            except StreamReset as error:
                outcome.append(error)
            seen.set()

        server.set_stream_handler("/read", reader)
        stream = await client.open_stream(server.peer_id, "/read")
        await stream.send_all(b"some")
        await stream.reset()
        await seen.wait()
        assert len(outcome) == 1
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        assert await roundtrip(client, server) == b"ping"


async def test_a_handler_that_raises_resets_its_stream_and_nothing_else(caplog):
    async with two_hosts() as (server, client):

        async def broken(stream: Stream) -> None:
            raise ZeroDivisionError("a bug of the application")

        server.set_stream_handler("/broken", broken)
        stream = await client.open_stream(server.peer_id, "/broken")
        with pytest.raises(StreamReset):
            await stream.read_exactly(1)
        assert "a bug of the application" in caplog.text
        assert await roundtrip(client, server) == b"ping"


async def test_what_a_handler_wrote_can_be_read_after_it_closed_without_reading():
    async with two_hosts() as (server, client):

        async def answer_without_listening(stream: Stream) -> None:
            await stream.send_all(b"x" * 100_000)

        server.set_stream_handler("/answer", answer_without_listening)
        stream = await client.open_stream(server.peer_id, "/answer")
        assert await stream.read_exactly(100_000) == b"x" * 100_000
        assert await stream.receive_some() == b""


async def test_an_unknown_protocol_is_refused_by_name():
    async with two_hosts() as (server, client):
        with pytest.raises(ProtocolNotSupported, match="/nobody/speaks/this"):
            await client.open_stream(server.peer_id, "/nobody/speaks/this")
        assert await roundtrip(client, server) == b"ping"


async def test_a_cancelled_write_leaves_the_connection_usable():
    async with two_hosts() as (server, client):
        started = trio.Event()

        async def never_read(stream: Stream) -> None:
            started.set()
            await trio.sleep_forever()

        server.set_stream_handler("/never-read", never_read)
        stream = await client.open_stream(server.peer_id, "/never-read")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, bytes(50_000_000))  # far beyond any window
                await started.wait()
                for _ in range(20):
                    assert await roundtrip(client, server) == b"ping"  # and meanwhile others get through
                scope.cancel()
        assert scope.cancelled_caught
        await stream.reset()
        assert await roundtrip(client, server, b"after") == b"after"
        assert len(client.connections()) == 1


async def test_a_cancelled_read_loses_nothing():
    async with two_hosts() as (server, client):
        stream = await client.open_stream(server.peer_id, ECHO)
        with trio.move_on_after(0) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        await stream.send_all(b"still here")
        assert await stream.read_exactly(10) == b"still here"


async def test_two_readers_at_once_are_a_mistake_that_is_named():
    async with two_hosts() as (server, client):
        stream = await client.open_stream(server.peer_id, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await stream.receive_some()
            await stream.send_all(b"done")


async def test_a_reader_wakes_when_its_stream_is_closed_under_it():
    async with two_hosts() as (server, client):
        stream = await client.open_stream(server.peer_id, ECHO)

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await stream.aclose()


async def test_the_end_of_the_connection_reaches_every_stream():
    async with two_hosts() as (server, client):
        stream = await client.open_stream(server.peer_id, ECHO)
        [connection] = server.connections(client.peer_id)
        await connection.aclose()
        with pytest.raises(ConnectionLost):
            await stream.read_exactly(1)
        with pytest.raises(ConnectionLost):
            await stream.send_all(b"x")
        await stream.aclose()
        assert await roundtrip(client, server) == b"ping"  # on a new connection


async def test_what_takes_no_waiting_is_sent_without_waiting():
    async with two_hosts() as (server, client):
        await roundtrip(client, server)
        stream, waiting = await client.open_stream(server.peer_id, ECHO), trio.Event()
        assert stream.send_nowait(b"ping")
        stream.when_readable(waiting.set)
        await waiting.wait()
        assert await stream.receive_some(2) == b"pi"
        assert (stream.receive_nowait(1), stream.receive_nowait(9), stream.receive_nowait(9)) == (b"n", b"g", b"")
        assert not stream.send_nowait(bytes(2**18 + 1)), "more than the window"
        assert stream.send_nowait(b"that is all", last=True)
        with pytest.raises(trio.ClosedResourceError):
            stream.send_nowait(b"more")
        again = await client.open_stream(server.peer_id, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.send_all, bytes(2**26))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                again.send_nowait(b"in between")
            nursery.cancel_scope.cancel()
        await again.reset()


async def test_a_call_is_one_packet_there_and_one_back():
    async with two_hosts() as (server, client):
        heard: list[bytes] = []

        async def answer(stream: Stream) -> None:
            heard.append(stream.receive_nowait(100))
            assert stream.send_nowait(b"pong", last=True)

        server.set_stream_handler("/call", answer)

        async def call() -> None:
            stream = await client.open_stream(server.peer_id, "/call")
            assert stream.send_nowait(b"ping")
            assert await stream.receive_some() == b"pong"
            stream.close()

        await call()
        await trio.testing.wait_all_tasks_blocked(0.05)
        [connection] = server.connections()
        muxer = connection._muxer
        assert isinstance(muxer, YamuxMuxer)
        before = muxer._received
        for _ in range(20):
            await call()
        assert muxer._received - before <= 22, "the end of a call travels with the next one"
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(muxer.session) == 0, "and soon without one"
        assert heard[1:] == [b"ping"] * 20
