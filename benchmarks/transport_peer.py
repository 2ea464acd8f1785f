"""One process of the transport benchmark: ``transport_peer.py SYSTEM server`` or ``transport_peer.py SYSTEM client``.

It takes orders as lines of JSON and answers each with one. A server says first where it is reached. What is served is
the same in all systems: a stream carries requests of nine bytes, ``mode size``, each followed by ``size`` bytes; they
are thrown away and answered with one byte (mode 0), or sent back (mode 1).
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from benchmarks.transport_systems import SYSTEMS, Connect, Stream

TAKE, ECHO = 0, 1
REQUEST = struct.Struct("!BQ")
LARGEST = 256 << 20


async def serve(stream: Stream) -> None:
    """Answer requests until the caller ends the stream."""
    buffer = bytearray()
    head = bytearray(REQUEST.size)
    while await stream.read_into(memoryview(head)):
        mode, size = REQUEST.unpack(head)
        if size > len(buffer):
            buffer = bytearray(size)
        body = memoryview(buffer)[:size]
        await stream.read_into(body)
        await stream.send_all(body if mode == ECHO else b"k")


class Client:
    """What a client can be told to do; each method is an order."""

    def __init__(self, connect: Connect, address: str) -> None:
        self._connect = connect
        self._address = address
        self._stack = AsyncExitStack()
        self._held: list[Stream] = []
        self._streams: list[Stream] = []
        self._data = memoryview(bytes(range(256)) * (LARGEST // 256))

    async def start(self) -> None:
        """Connect."""
        self._open = await self._stack.enter_async_context(self._connect(self._address))

    async def prepare(self, size: int, streams: int) -> list[float]:
        """Open so many streams and send ``size`` bytes over each, so that no memory is new in :meth:`transfer`."""
        self._streams = [await self._open() for _ in range(streams)]
        for stream in self._streams:
            await _call(stream, TAKE, self._data[:size])
        return []

    async def transfer(self, size: int) -> list[float]:
        """Send ``size`` bytes over all prepared streams at once; seconds until all is acknowledged."""
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for stream in self._streams:
                nursery.start_soon(_call, stream, TAKE, self._data[:size])
        return [time.perf_counter() - began]

    async def finish(self) -> list[float]:
        """Close the streams."""
        for stream in self._streams:
            await stream.aclose()
        return []

    async def calls(self, size: int, count: int, new: bool) -> list[float]:
        """Send ``size`` bytes and read them back, on one stream or each time on a new one; seconds of each call."""
        times, target = [], memoryview(bytearray(size))
        stream = None if new else await self._open()
        for _ in range(count):
            began = time.perf_counter()
            current = stream if stream is not None else await self._open()
            await current.send_all(REQUEST.pack(ECHO, size) + self._data[:size])
            await current.read_into(target)
            times.append(time.perf_counter() - began)
            if new:
                await current.aclose()
        if stream is not None:
            await stream.aclose()
        return times

    async def setup(self, count: int) -> list[float]:
        """Connect anew, so often, as a peer of its own each time; seconds of each."""
        times: list[float] = []
        for _ in range(count):
            async with self._connect(self._address, times):
                pass
        return times

    async def hold_connections(self, count: int) -> list[float]:
        """Keep so many more connections open, each of a peer of its own."""
        times: list[float] = []
        for _ in range(count):
            await self._stack.enter_async_context(self._connect(self._address, times))
        return times

    async def hold_streams(self, count: int) -> list[float]:
        """Keep so many more streams open, each used once; seconds of each."""
        times = []
        for _ in range(count):
            began = time.perf_counter()
            stream = await self._open()
            await _call(stream, TAKE, self._data[:1])
            self._held.append(stream)
            times.append(time.perf_counter() - began)
        return times


async def _call(stream: Stream, mode: int, data: memoryview) -> None:
    await stream.send_all(REQUEST.pack(mode, len(data)))
    await stream.send_all(data)
    await stream.read_into(memoryview(bytearray(1)))


async def _orders() -> AsyncIterator[dict[str, Any]]:
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        yield json.loads(line)


@asynccontextmanager
async def _client(system: str) -> AsyncIterator[Client]:
    address = json.loads(sys.stdin.readline())["address"]
    client = Client(SYSTEMS[system].connect, address)
    await client.start()
    async with client._stack:
        yield client


async def main(system: str, role: str) -> None:
    """Serve until stdin ends, or follow orders until then."""
    if role == "server":
        async with SYSTEMS[system].serve(serve) as (address, pids):
            print(json.dumps({"address": address, "pids": pids}), flush=True)
            async for _ in _orders():
                pass
        return
    async with _client(system) as client:
        print(json.dumps({"pids": client_pids()}), flush=True)
        async for order in _orders():
            times = await getattr(client, order.pop("do"))(**order)
            print(json.dumps({"times": times}), flush=True)


def client_pids() -> list[int]:
    """This process and those that it started."""
    import psutil

    me = psutil.Process()
    return [me.pid, *(child.pid for child in me.children(recursive=True))]


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:3])
