"""Two hosts, hundreds of streams: opens, writes, closes, resets and cancellations at random; then nothing may be left.

No stream, task or byte: what is counted is in :func:`left`. A small soak is among the tests (``tests/transport``).
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import gc
import random
import struct
import time
from collections import Counter
from pathlib import Path

import psutil
import trio
from multiaddr import Multiaddr

from benchmarks.report import Row, publish
from hivemind_p2p.errors import StreamReset
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.negotiated import NegotiatedStream
from hivemind_p2p.transport.yamux.muxer import YamuxMuxer
from hivemind_p2p.transport.yamux.stream import YamuxStream

PROTOCOL = "/soak/1.0.0"
ECHO, TALK, REFUSE, DOZE = b"e", b"t", b"r", b"d"
SIZE = struct.Struct("!I")
LARGEST = 2 << 20
DATA = random.Random(0).randbytes(2 * LARGEST)


async def serve(stream: Stream) -> None:
    """The other side of each stream does what its first byte says."""
    mode = await stream.read_exactly(1)
    [size] = SIZE.unpack(await stream.read_exactly(SIZE.size))
    if mode == ECHO:
        while data := await stream.receive_some():
            await stream.send_all(data)
    elif mode == TALK:  # and close without having listened
        await stream.send_all(DATA[:size])
    elif mode == REFUSE:
        await stream.read_exactly(size // 2)
        await stream.reset()
    else:
        while await stream.receive_some(10_000):  # noqa: ASYNC110  # slowly
            await trio.sleep(0.02)


class Soak:
    """Workers that use streams between two hosts, each in its own way each time.

    Args:
        seed: of everything random.
    """

    def __init__(self, one: Host, two: Host, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.carried = 0
        """Bytes that were sent and came back."""
        self._hosts = one, two
        self._chance = random.Random(seed)

    async def run(self, workers: int, *, streams: float = float("inf"), seconds: float = float("inf")) -> None:
        """Use so many streams one after the other, or for so long; ``workers`` of them at a time."""
        until, begun = trio.current_time() + seconds, 0

        async def work() -> None:
            nonlocal begun
            while begun < streams and trio.current_time() < until:
                begun += 1
                self.outcomes[await self._use_one()] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(work)

    async def _use_one(self) -> str:
        here, there = self._chance.sample(self._hosts, 2)
        use = self._chance.choice([self._echo, self._echo, self._cancel, self._cut_short, self._listen, self._unused])
        stream = await here.open_stream(there.peer_id, PROTOCOL)
        try:
            await use(stream)
        finally:
            await stream.reset()
        return use.__name__.strip("_")

    def _size(self) -> int:
        return self._chance.choice([0, 1, 100, 5_000, 70_000, 300_000, LARGEST])

    async def _echo(self, stream: Stream) -> None:
        """All comes back, in order, however it is read; and whatever reads were cancelled."""
        size, begin = self._size(), self._chance.randrange(LARGEST)
        data = memoryview(DATA)[begin : begin + size]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, stream, ECHO, data)
            received = bytearray()
            while len(received) < size:
                if self._chance.random() < 0.5:
                    with trio.move_on_after(self._chance.random() / 1000):
                        received += await stream.receive_some(self._chance.choice([None, 1, 1000, 100_000]))
                else:
                    part = bytearray(min(size - len(received), self._chance.choice([1, 4096, 200_000])))
                    await stream.read_into(memoryview(part))
                    received += part
        assert received == data
        await stream.send_eof()
        assert await stream.receive_some() == b""
        await stream.aclose()
        self.carried += size

    async def _cancel(self, stream: Stream) -> None:
        """Give up at any point."""
        with trio.move_on_after(self._chance.random() / 50):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, stream, self._chance.choice([ECHO, DOZE]), memoryview(DATA))
                position = 0
                while True:
                    data = await stream.receive_some()
                    assert data == DATA[position : position + len(data)]
                    position += len(data)

    async def _cut_short(self, stream: Stream) -> None:
        """The other side resets."""
        size = 2 + self._size()
        try:
            await self._send(stream, REFUSE, memoryview(DATA)[:size])
            while await stream.receive_some():
                raise AssertionError("nobody says anything on this stream")
        except StreamReset:
            return
        raise AssertionError("a stream that was reset seems to have ended well")

    async def _listen(self, stream: Stream) -> None:
        """The other side speaks and closes."""
        size = self._size()
        await stream.send_all(TALK + SIZE.pack(size))
        if self._chance.random() < 0.5:
            await stream.send_eof()
        assert await stream.read_exactly(size) == DATA[:size]
        assert await stream.receive_some() == b""

    async def _unused(self, stream: Stream) -> None:
        """Opened and closed, at once or a little later."""
        if self._chance.random() < 0.5:
            await trio.sleep(self._chance.random() / 20)
        await stream.aclose()

    async def _send(self, stream: Stream, mode: bytes, data: memoryview) -> None:
        await stream.send_all(mode + SIZE.pack(len(data)))
        while data:
            size = self._chance.choice([1000, 50_000, LARGEST])
            part, data = data[:size], data[size:]
            await stream.send_all(part)


def left(*hosts: Host) -> Counter[str]:
    """What idle hosts hold: streams, bytes and tasks."""
    gc.collect()
    counts: Counter[str] = Counter(tasks=trio.lowlevel.current_statistics().tasks_living)
    for each in gc.get_objects():
        if type(each) in (YamuxStream, NegotiatedStream):  # isinstance would run code of strangers' objects
            counts["stream objects"] += 1
    for connection in (connection for host in hosts for connection in host.connections()):
        muxer = connection._muxer
        assert isinstance(muxer, YamuxMuxer)
        counts["connections"] += 1
        counts["streams"] += muxer.stream_count + len(muxer.session) + muxer.session.inbound_count + muxer._outbound
        counts["handlers"] += connection._serving
        counts["bytes unread"] += muxer.session.windows.held
        counts["bytes of windows"] += muxer.session.windows.granted
        counts["bytes unsent"] += muxer._channel.pending
        counts["streams unheard of"] += len(connection._unheard)
    return +counts


async def more_than(before: Counter[str], *hosts: Host) -> Counter[str]:
    """What is left beyond what there was before; waits for it to go, at most for half a minute."""
    with trio.move_on_after(30):
        while left(*hosts) - before:  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.05)
    return left(*hosts) - before


def memory_held() -> int:
    """Bytes that this process has in memory, without what its allocator keeps for later."""
    gc.collect()
    if (libc := ctypes.util.find_library("c")) and hasattr(trim := ctypes.CDLL(libc), "malloc_trim"):
        trim.malloc_trim(0)
    return int(psutil.Process().memory_full_info().uss)


async def measure(workers: int, seconds: float, seed: int) -> list[Row]:
    """Soak two hosts on loopback.

    Raises:
        SystemExit: something is left.
    """
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    async with Host(Identity.generate(), host_maddrs=listen) as one, Host(Identity.generate()) as two:
        for host in (one, two):
            host.set_stream_handler(PROTOCOL, serve)
        await two.connect(one.visible_maddrs[0])
        soak = Soak(one, two, seed)
        await soak.run(workers, streams=10 * workers)
        await trio.sleep(1)
        before, memory = left(one, two), memory_held()
        began = time.perf_counter()
        await soak.run(workers, seconds=seconds)
        took = time.perf_counter() - began
        if more := await more_than(before, one, two):
            raise SystemExit(f"this is left over: {dict(more)}")
        print(f"nothing is left over; still there as before: {dict(before)}; streams: {dict(soak.outcomes)}")
        rows = [Row(f"streams used, {workers} at a time", ""), Row("carried there and back", "MB"), Row("time", "s")]
        rows += [Row("memory after 10 streams of each", "MiB"), Row("memory at the end", "MiB")]
        values = (soak.outcomes.total(), soak.carried / 1e6, took, memory / 2**20, memory_held() / 2**20)
        for row, value in zip(rows, values, strict=True):
            row.add("ours", value)
        return rows


def main() -> None:
    """Soak, then count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    parser.add_argument("--streams", type=int, default=300, help="streams in use at a time (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    arguments = parser.parse_args()
    rows = trio.run(measure, arguments.streams, 60 * arguments.minutes, arguments.seed)
    publish("soak", rows, arguments.json)


if __name__ == "__main__":
    main()
