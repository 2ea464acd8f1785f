"""What the transport tests share: hosts on loopback and handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.yamux.muxer import YamuxMuxer

ECHO = "/echo/1.0.0"
LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/0")


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


@asynccontextmanager
async def two_hosts(
    settings: TransportSettings | None = None, *, listen: Sequence[Multiaddr] = (LOOPBACK,)
) -> AsyncIterator[tuple[Host, Host]]:
    """A host that listens and echoes, and one that only dials and knows its address; not connected yet."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Host(Identity.generate(), host_maddrs=listen, settings=settings))
        client = await stack.enter_async_context(Host(Identity.generate(), settings=settings))
        server.set_stream_handler(ECHO, echo)
        client.add_addresses(server.peer_id, server.visible_maddrs)
        yield server, client


async def in_use(host: Host, peer: Host) -> Stream:
    """A new stream, which the peer has heard of."""
    stream = await host.open_stream(peer.peer_id, ECHO)
    await stream.send_all(b"!")
    assert await stream.read_exactly(1) == b"!"
    return stream


async def roundtrip(host: Host, peer: Host, data: bytes = b"ping") -> bytes:
    """Send ``data`` over a new stream and return what comes back."""
    async with await host.open_stream(peer.peer_id, ECHO) as stream:
        await stream.send_all(data)
        await stream.send_eof()
        return await stream.read_exactly(len(data))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so that nobody tells of, on real sockets."""
    with trio.fail_after(30):
        while True:
            if condition():
                return
            await trio.sleep(0.001)


async def at_rest(*hosts: Host) -> None:
    """Wait until hosts that are connected to each other know who is who, and no stream is open."""
    for host in hosts:
        await until(lambda host=host: bool(host.connections()))
        for connection in host.connections():
            await connection.identified.wait()
    for host in hosts:
        await until(lambda host=host: all(connection.idle for connection in host.connections()))


def at_peace(*hosts: Host) -> None:
    """Hosts dial nobody, are dialled by nobody, and no stream is open or counted."""
    for host in hosts:
        assert host._dialer is not None
        assert host._puncher is not None
        assert (host._dialer._dials, host._puncher._punches, len(host._handshakes)) == ({}, {}, 0)
        assert not host._connections.visitors
        for connection in host.connections():
            muxer = connection._muxer
            assert isinstance(muxer, YamuxMuxer)
            session = muxer.session
            assert (muxer.stream_count, muxer._outbound, len(session), session.inbound_count) == (0, 0, 0, 0)
            assert (session._unended, session.windows.held, session.windows.granted) == (0, 0, 0)
            assert (connection._serving, connection._unheard) == (0, set())
