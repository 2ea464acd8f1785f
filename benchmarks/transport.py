"""Streams between two processes on loopback: throughput, latency, memory; beside py-libp2p, two p2pd and bare TCP."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.p2pd import binary
from benchmarks.report import ROOT, Row, markdown, publish

SYSTEMS = ("ours", "py-libp2p", "p2pd", "raw TCP")
MIB = 1 << 20
TRANSFERS = [(1, 1), (16, 1), (64, 1), (256, 1), (1, 16), (16, 16)]  # (MiB on each stream, streams)
CALLS = [
    ("1 KB, new stream", {"size": 1000, "new": True, "count": 150}),
    ("1 KB, open stream", {"size": 1000, "new": False, "count": 300}),
    ("1 MB, new stream", {"size": 10**6, "new": True, "count": 20}),
    ("1 MB, open stream", {"size": 10**6, "new": False, "count": 20}),
]
ROUND_TRIP = 0.05


class Process:
    """One process of one system, spoken to in lines of JSON."""

    def __init__(self, name: str, *command: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def tell(self, order: dict[str, Any]) -> None:
        """Give an order; :meth:`answer` waits for what came of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()} before it answered")
        return json.loads(line)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pair:
    """A server and a client of one system."""

    def __init__(self, server: Process, client: Process, server_pids: list[int], client_pids: list[int]) -> None:
        self._client = client
        self.server = [psutil.Process(pid) for pid in server_pids]
        self.client = [psutil.Process(pid) for pid in client_pids]

    def do(self, what: str, **arguments: Any) -> list[float]:
        """Let the client do something; seconds."""
        self._client.tell({"do": what, **arguments})
        return self._client.answer()["times"]  # type: ignore[no-any-return]

    def cpu(self) -> tuple[float, float]:
        """Processor seconds so far: the client's side, the server's side."""
        return _cpu(self.client), _cpu(self.server)

    def server_memory(self) -> int:
        """Bytes that the server's side alone has in memory."""
        return sum(process.memory_full_info().uss for process in self.server)


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@contextmanager
def pair(system: str, delay: float = 0.0) -> Iterator[Pair]:
    """Both processes, connected; with ``delay`` seconds each way between them."""
    with ExitStack() as stack:
        server = stack.enter_context(Process(f"{system} server", "benchmarks.transport_peer", system, "server"))
        served = server.answer()
        address = served["address"]
        if delay:
            port = address.split("/")[4]
            proxy = stack.enter_context(Process("proxy", "benchmarks.delay", port, str(delay)))
            address = address.replace(f"/tcp/{port}", f"/tcp/{proxy.answer()}")
        client = stack.enter_context(Process(f"{system} client", "benchmarks.transport_peer", system, "client"))
        client.tell({"address": address})
        yield Pair(server, client, served["pids"], client.answer()["pids"])


def transfers(pairs: dict[str, Pair], rounds: int) -> Iterator[Row]:
    """MB/s, and what a MB costs."""
    for size, streams in TRANSFERS:
        name = f"{size} MiB on each of {streams} streams" if streams > 1 else f"{size} MiB on one stream"
        speed = Row(name, "MB/s", better="higher")
        costs = [Row(f"{name}: processor, {side}", "ms/MB") for side in ("sender", "receiver")]
        for _ in range(rounds):
            for system, both in pairs.items():
                both.do("prepare", size=size * MIB, streams=streams)
                repeats = max(1, 128 // (size * streams))  # the clock of a process ticks in 10 ms
                before = both.cpu()
                seconds = [both.do("transfer", size=size * MIB)[0] for _ in range(repeats)]
                after = both.cpu()
                both.do("finish")
                megabytes = size * MIB * streams / 1e6
                speed.add(system, *(megabytes / each for each in seconds))
                for cost, start, end in zip(costs, before, after, strict=True):
                    cost.add(system, 1000 * (end - start) / (megabytes * repeats))
        yield speed
        yield from costs


def calls(pairs: dict[str, Pair], rounds: int) -> Iterator[Row]:
    """Milliseconds of a call: a request, and the same bytes back."""
    for name, order in CALLS:
        row = Row(f"call, {name}", "ms")
        for _ in range(rounds):
            for system, both in pairs.items():
                row.add(system, *(1000 * seconds for seconds in both.do("calls", **order)))
        yield row


def setup(pairs: dict[str, Pair], rounds: int) -> Iterator[Row]:
    """Milliseconds until a new peer is connected."""
    row = Row("connection set-up", "ms")
    for _ in range(rounds):
        for system, both in pairs.items():
            row.add(system, *(1000 * seconds for seconds in both.do("setup", count=4)))
    yield row


def distance(systems: list[str], rounds: int) -> Iterator[Row]:
    """MB/s with a round trip of 50 ms, on one stream; 1 Gbit/s is 125."""
    row = Row(f"256 MiB on one stream, {1000 * ROUND_TRIP:g} ms of round trip", "MB/s", better="higher")
    call = Row(f"call, 1 KB, new stream, {1000 * ROUND_TRIP:g} ms of round trip", "ms")
    with ExitStack() as stack:
        pairs = {system: stack.enter_context(pair(system, ROUND_TRIP / 2)) for system in systems}
        for _ in range(rounds):
            for system, both in pairs.items():
                both.do("prepare", size=256 * MIB, streams=1)
                row.add(system, 256 * MIB / 1e6 / both.do("transfer", size=256 * MIB)[0])
                both.do("finish")
                call.add(system, *(1000 * seconds for seconds in both.do("calls", size=1000, new=True, count=5)))
    yield row
    yield call


def scale(systems: list[str], connections: int, streams: int) -> Iterator[Row]:
    """What idle connections and streams cost the side that accepts them, and whether many of them slow calls down."""
    per_connection = Row(f"memory of an idle connection, of {connections}", "KiB")
    per_stream = Row(f"memory of an idle stream, of {streams:,}", "KiB")
    first = Row(f"opening a stream and using it once, the first 1,000 of {streams:,}", "ms")
    last = Row("the same, the last 1,000", "ms")
    before = Row("call, 1 KB, new stream, no other open", "ms")
    after = Row(f"the same, {streams:,} others open", "ms")
    order = {"size": 1000, "new": True, "count": 500}
    for system in systems:
        with pair(system) as both:
            both.do("calls", **order)
            start = both.server_memory()
            if system != "p2pd":  # a daemon for each connection
                both.do("hold_connections", count=connections)
                per_connection.add(system, (both.server_memory() - start) / 1024 / connections)
        if system != "ours":  # py-libp2p hangs after 256 streams, p2pd refuses more than 512
            continue
        with pair(system) as both:
            before.add(system, *(1000 * seconds for seconds in both.do("calls", **order)))
            start = both.server_memory()
            times = both.do("hold_streams", count=streams)
            first.add(system, *(1000 * seconds for seconds in times[:1000]))
            last.add(system, *(1000 * seconds for seconds in times[-1000:]))
            per_stream.add(system, (both.server_memory() - start) / 1024 / streams)
            after.add(system, *(1000 * seconds for seconds in both.do("calls", **order)))
    yield from (per_connection, per_stream, first, last, before, after)


def main() -> None:
    """Alternate between the systems, row by row, round by round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE, in Markdown")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, metavar="SYSTEM", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each row (default: 5)")
    parser.add_argument("--connections", type=int, default=100, help="idle connections (default: 100)")
    parser.add_argument("--streams", type=int, default=10_000, help="idle streams (default: 10000)")
    parser.add_argument("--parts", nargs="+", default=["transfers", "calls", "setup", "distance", "scale"])
    arguments = parser.parse_args()
    systems = arguments.only or [name for name in SYSTEMS if name != "p2pd" or binary() is not None]
    rows: list[Row] = []
    with ExitStack() as stack:
        pairs = {system: stack.enter_context(pair(system)) for system in systems}
        for name, part in (("transfers", transfers), ("calls", calls), ("setup", setup)):
            if name in arguments.parts:
                rows += part(pairs, arguments.rounds)
    if "distance" in arguments.parts:
        rows += distance(systems, max(2, arguments.rounds // 2))
    if "scale" in arguments.parts:
        rows += scale(systems, arguments.connections, arguments.streams)
    publish("transport", rows, arguments.json)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
