"""The systems of the transport benchmark, behind one face: ours, stock py-libp2p, two p2pd, and a bare TCP socket."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import trio
from multiaddr import Multiaddr

PROTOCOL = "/benchmark/1.0.0"
LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/0")


class Stream(Protocol):
    """What the benchmark needs of a stream."""

    async def send_all(self, data: bytes | memoryview) -> None: ...

    async def read_into(self, buffer: memoryview) -> bool:
        """Fill the buffer; False if the stream ended before its first byte."""

    async def aclose(self) -> None: ...


Serve = Callable[[Stream], Awaitable[None]]
Open = Callable[[], Awaitable[Stream]]


class Connect(Protocol):
    """Connect to an address; gives what opens streams. Appends the seconds of connecting to ``times``."""

    def __call__(self, address: str, times: list[float] | None = None) -> AbstractAsyncContextManager[Open]: ...


@dataclass(frozen=True)
class System:
    """One way to carry streams between two processes."""

    serve: Callable[[Serve], AbstractAsyncContextManager[tuple[str, list[int]]]]
    connect: Connect


class _timed:  # noqa: N801  # used like a function
    def __init__(self, times: list[float] | None) -> None:
        self._times = times if times is not None else []

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._times.append(time.perf_counter() - self._began)


class TrioStream:
    """A ``trio.SocketStream``; received into the target without copying, as the fastest program would."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.send_all = stream.send_all
        self.aclose = stream.aclose

    async def read_into(self, buffer: memoryview) -> bool:
        filled = 0
        while filled < len(buffer):
            size = await self._stream.socket.recv_into(buffer[filled:])
            if not size:
                return False
            filled += size
        return True


# Bare TCP: a connection for every stream


@asynccontextmanager
async def tcp_serve(serve: Serve) -> AsyncIterator[tuple[str, list[int]]]:
    async def handler(stream: trio.SocketStream) -> None:
        async with stream:
            await serve(TrioStream(stream))

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handler, [listener])
        yield f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}", [os.getpid()]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tcp_connect(address: str, times: list[float] | None = None) -> AsyncIterator[Open]:
    port = int(address.split("/")[4])
    with _timed(times):
        first = await trio.open_tcp_stream("127.0.0.1", port)

    async def open_stream() -> Stream:
        return TrioStream(await trio.open_tcp_stream("127.0.0.1", port))

    async with first:
        yield open_stream


# Ours


class OurStream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.send_all = stream.send_all
        self.aclose = stream.aclose

    async def read_into(self, buffer: memoryview) -> bool:
        from hivemind_p2p.errors import StreamError

        try:
            await self._stream.read_into(buffer)
        except StreamError:
            return False
        return True


def _our_host(**options: Any) -> Any:
    from hivemind_p2p.config import TransportSettings
    from hivemind_p2p.transport.host import Host
    from hivemind_p2p.transport.identity import Identity

    settings = TransportSettings(max_streams_in=20_000, max_streams_out=20_000)
    return Host(Identity.generate(), settings=settings, **options)


@asynccontextmanager
async def our_serve(serve: Serve) -> AsyncIterator[tuple[str, list[int]]]:
    async with _our_host(host_maddrs=[LOOPBACK]) as host:
        host.set_stream_handler(PROTOCOL, lambda stream: serve(OurStream(stream)))
        yield str(host.visible_maddrs[0]), [os.getpid()]


@asynccontextmanager
async def our_connect(address: str, times: list[float] | None = None) -> AsyncIterator[Open]:
    async with _our_host() as host:
        with _timed(times):
            peer_id = await host.connect(Multiaddr(address))

        async def open_stream() -> Stream:
            return OurStream(await host.open_stream(peer_id, PROTOCOL))

        yield open_stream


# Stock py-libp2p: its own Noise and Yamux


class StockStream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.aclose = stream.close

    async def send_all(self, data: bytes | memoryview) -> None:
        await self._stream.write(bytes(data))

    async def read_into(self, buffer: memoryview) -> bool:
        from libp2p.network.stream.exceptions import StreamError

        filled = 0
        while filled < len(buffer):
            try:
                data = await self._stream.read(len(buffer) - filled)
            except StreamError:
                return False
            if not data:
                return False
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        return True


def _stock_host(listen: list[Multiaddr]) -> Any:
    import logging

    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as x25519
    from libp2p.security.noise.transport import PROTOCOL_ID, Transport

    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    key_pair = create_new_key_pair(secrets.token_bytes(32))
    security = {PROTOCOL_ID: Transport(key_pair, x25519().private_key)}
    return new_host(key_pair=key_pair, sec_opt=security, listen_addrs=listen)


@asynccontextmanager
async def stock_serve(serve: Serve) -> AsyncIterator[tuple[str, list[int]]]:
    host = _stock_host([LOOPBACK])
    async with host.run(listen_addrs=[LOOPBACK]):

        async def handler(stream: Any) -> None:
            await serve(StockStream(stream))
            await stream.close()

        host.set_stream_handler(PROTOCOL, handler)
        yield str(host.get_addrs()[0]), [os.getpid()]


@asynccontextmanager
async def stock_connect(address: str, times: list[float] | None = None) -> AsyncIterator[Open]:
    from libp2p.peer.peerinfo import info_from_p2p_addr

    info = info_from_p2p_addr(Multiaddr(address))
    host = _stock_host([])
    async with host.run(listen_addrs=[]):
        with _timed(times):
            await host.connect(info)

        async def open_stream() -> Stream:
            return StockStream(await host.new_stream(info.peer_id, [PROTOCOL]))

        yield open_stream


# Two p2pd, each driven over its Unix socket


@asynccontextmanager
async def p2pd_serve(serve: Serve) -> AsyncIterator[tuple[str, list[int]]]:
    from benchmarks import p2pd

    async with p2pd.running() as daemon, trio.open_nursery() as nursery:
        await daemon.serve(PROTOCOL, lambda stream: serve(TrioStream(stream)), nursery)
        peer_id, maddr = await daemon.identify()
        yield f"{maddr}/p2p/{peer_id}", [os.getpid(), daemon.process.pid]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def p2pd_connect(address: str, times: list[float] | None = None) -> AsyncIterator[Open]:
    from benchmarks import p2pd
    from hivemind_p2p.transport.addresses import split_peer

    maddr, peer_id = split_peer(Multiaddr(address))
    assert peer_id is not None
    async with p2pd.running() as daemon:
        with _timed(times):
            await daemon.connect(peer_id, maddr)

        async def open_stream() -> Stream:
            return TrioStream(await daemon.open_stream(peer_id, PROTOCOL))

        yield open_stream


SYSTEMS = {
    "ours": System(our_serve, our_connect),
    "py-libp2p": System(stock_serve, stock_connect),
    "p2pd": System(p2pd_serve, p2pd_connect),
    "raw TCP": System(tcp_serve, tcp_connect),
}
