"""Our transport and hivemind's p2pd (go-libp2p): TCP, Noise and Yamux, whoever dials and whoever opens the streams."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import pytest
import trio

from benchmarks import p2pd
from benchmarks.p2pd import P2PD
from hivemind_p2p.transport.addresses import split_peer
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identify import IDENTIFY, PING
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.wire.peer_id import PeerID
from tests.transport.hosts import ECHO, LOOPBACK, echo

LARGE = 64 * 2**20
WE_DIAL, IT_DIALS = "we dial", "p2pd dials"
either_dials = pytest.mark.parametrize("dialler", [WE_DIAL, IT_DIALS])


class Daemon:
    """A p2pd that echoes, and how many bytes it heard on streams that have ended."""

    def __init__(self, p2pd: P2PD, peer_id: PeerID) -> None:
        self.p2pd, self.peer_id = p2pd, peer_id
        self.ended: list[int] = []
        self.one_ended = trio.Event()

    async def echo(self, stream: trio.SocketStream) -> None:
        heard = 0
        try:
            async for data in stream:
                heard += len(data)
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass  # the daemon closes its end when the stream is reset
        self.ended.append(heard)
        self.one_ended.set()


@asynccontextmanager
async def connected(dialler: str) -> AsyncIterator[tuple[Host, Daemon]]:
    """A host of ours and a p2pd with one connection between them, both of which echo."""
    if p2pd.binary() is None:
        pytest.skip("the original hivemind is not here; get it with scripts/setup --interop")
    async with (
        p2pd.running() as process,
        Host(Identity.generate(), host_maddrs=[LOOPBACK]) as host,
        trio.open_nursery() as nursery,
    ):
        peer_id, maddr = await process.identify()
        daemon = Daemon(process, peer_id)
        host.set_stream_handler(ECHO, echo)
        await process.serve(ECHO, daemon.echo, nursery)
        if dialler == WE_DIAL:
            host.add_addresses(peer_id, [maddr])
        else:
            await process.connect(host.peer_id, split_peer(host.visible_maddrs[0])[0])
        assert await call(host, daemon) == b"ping"
        [connection] = host.connections()
        assert connection.outbound == (dialler == WE_DIAL)
        with trio.fail_after(60):
            yield host, daemon
        assert host.connections() == [connection]
        nursery.cancel_scope.cancel()


@either_dials
async def test_each_says_who_it_is(dialler):
    async with connected(dialler) as (host, daemon):
        [connection] = host.connections()
        await connection.identified.wait()
        said = connection.description
        assert "p2p" in said.agent
        assert {ECHO, IDENTIFY, PING} <= said.protocols
        assert (await daemon.p2pd.identify())[1] in said.maddrs
        if dialler == WE_DIAL:
            assert str(said.observed).startswith("/ip4/127.0.0.1/tcp/")
        stream = await daemon.p2pd.open_stream(host.peer_id, IDENTIFY)
        message = b"".join([data async for data in stream])
        assert ECHO.encode() in message
        assert split_peer(host.visible_maddrs[0])[0].to_bytes() in message
        await stream.aclose()


@either_dials
async def test_each_answers_the_pings_of_the_other(dialler):
    async with connected(dialler) as (host, daemon):
        ours = await host.open_stream(daemon.peer_id, PING)
        theirs = await daemon.p2pd.open_stream(host.peer_id, PING)
        for _ in range(3):
            ping = os.urandom(32)
            await ours.send_all(ping)
            assert await ours.read_exactly(32) == ping
            await theirs.send_all(ping)
            assert await read_exactly(theirs, 32) == ping
        await ours.aclose()
        await theirs.aclose()


@either_dials
async def test_64_mib_come_back_as_they_were_whoever_opened_the_stream(dialler):
    data = os.urandom(LARGE)
    async with connected(dialler) as (host, daemon):
        stream = await host.open_stream(daemon.peer_id, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            assert await stream.read_exactly(LARGE) == data
        await stream.aclose()
        theirs = await daemon.p2pd.open_stream(host.peer_id, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.send_all, data)
            assert await read_exactly(theirs, LARGE) == data
        await theirs.send_eof()
        assert await theirs.receive_some() == b""
        await theirs.aclose()


async def test_many_streams_at_once():
    async with connected(WE_DIAL) as (host, daemon):

        async def one(number: int) -> None:
            data = bytes([number]) * (number * 1000 + 1)
            assert await call(host, daemon, data) == data

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(one, number)


async def test_what_is_cancelled_and_reset_ends_there_and_leaves_the_connection_usable():
    async with connected(WE_DIAL) as (host, daemon):
        stream = await host.open_stream(daemon.peer_id, ECHO)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, bytes(LARGE))
                await stream.read_exactly(3_000_000)
                scope.cancel()
        daemon.one_ended = trio.Event()
        await stream.reset()
        await daemon.one_ended.wait()
        assert 3_000_000 <= daemon.ended[-1] < LARGE
        assert await call(host, daemon, bytes(1_000_000)) == bytes(1_000_000)


async def test_a_slow_reader_there_slows_only_its_own_stream():
    async with connected(WE_DIAL) as (host, daemon):
        slow = await host.open_stream(daemon.peer_id, ECHO)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(slow.send_all, bytes(LARGE))  # what comes back, nobody reads
                for number in count():
                    assert await call(host, daemon, bytes(100_000)) == bytes(100_000)
                    if number == 50:
                        scope.cancel()
        await slow.reset()


async def call(host: Host, daemon: Daemon, data: bytes = b"ping") -> bytes:
    """What comes back. A p2pd ends both directions when one has ended, so ours must not before."""
    async with await host.open_stream(daemon.peer_id, ECHO) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        return await stream.read_exactly(len(data))


async def read_exactly(stream: trio.SocketStream, size: int) -> bytes:
    buffer, filled = memoryview(bytearray(size)), 0
    while filled < size:
        data = await stream.receive_some(size - filled)
        assert data, f"the stream ended {filled} bytes into {size}"
        buffer[filled : filled + len(data)] = data
        filled += len(data)
    return bytes(buffer)
