"""A local swarm of one system, each peer a process of its own. Prints what it measured, as JSON."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processes import kill_tree

PROGRAM = Path(__file__).with_name("dht_peer.py")
BULK = 100
LASTS = 600.0


class Peer:
    """A process, and what it is asked to do."""

    def __init__(self, python: str, module: str, initial_peers: list[str]) -> None:
        self.process = subprocess.Popen(
            [python, str(PROGRAM), module, json.dumps(initial_peers)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1,
        )  # fmt: skip
        self.join_seconds, self.address = self._answer()

    def ask(self, *command: Any) -> tuple[float, Any]:
        """Seconds that it took there, and the result."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        return self._answer()

    def _answer(self) -> tuple[float, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a peer ended with {self.process.wait()}")
        seconds, result = json.loads(line)
        return seconds, result


class Measurement:
    """Samples by what was done, and how often it failed."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}
        self.operations = self.failures = 0

    def add(self, name: str, value: float) -> None:
        """Take a sample."""
        self.samples.setdefault(name, []).append(value)

    def ask(self, name: str, peer: Peer, *command: Any, right: Callable[[Any], bool], share: int = 1) -> None:
        """Have a peer do something; note how long it took, and whether it came out right."""
        seconds, result = peer.ask(*command)
        self.add(f"{name}, ms", 1000 * seconds / share)
        self.operations += 1
        self.failures += not right(result)


def cpu_seconds(pid: str = "self") -> float:
    """Of a process and all that it started (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = {
        child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    }
    return own + sum(map(cpu_seconds, children))


def loopback_bytes() -> int:
    """Sent so far."""
    [line] = [line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
    return int(line.partition(":")[2].split()[8])


def measure(peers: list[Peer], keys: int, measured: Measurement) -> None:
    """Store and get, one after the other, at peers drawn by lot."""
    chance = random.Random(1)
    readers = [chance.choice(peers) for _ in range(keys)]

    def step(name: str, do: Callable[[int], None]) -> None:
        before = cpu_seconds(), loopback_bytes()
        for number in range(keys):
            do(number)
        measured.add(f"CPU of all peers per {name}, ms", 1000 * (cpu_seconds() - before[0]) / keys)
        measured.add(f"bytes on the wire per {name}, KiB", (loopback_bytes() - before[1]) / keys / 1024)

    def store(number: int) -> None:
        measured.ask("store", chance.choice(peers), "store", f"key {number}", number, LASTS, right=bool)

    def get(name: str, latest: bool) -> Callable[[int], None]:
        def do(number: int) -> None:
            right = number.__eq__
            measured.ask(name, readers[number], "get", f"key {number}", latest, right=right)

        return do

    step("store", store)
    step("get, cold", get("get, cold", False))
    step("get, cached", get("get, cached", False))
    step("get, latest", get("get, latest", True))
    for number, reader in enumerate(readers):
        measured.ask("get, missing", reader, "get", f"missing {number}", False, right=lambda found: found is None)
    for number in range(max(keys // 10, 1)):
        names = [f"bulk {number} {each}" for each in range(BULK)]
        writer, reader = chance.sample(peers, 2)
        everything = BULK.__eq__
        measured.ask(f"store_many of {BULK}, per key", writer, "store_many", names, LASTS, right=everything, share=BULK)
        measured.ask(f"get_many of {BULK}, per key", reader, "get_many", names, right=everything, share=BULK)


def pss(process: psutil.Process) -> int:
    """Bytes in memory, what is shared counted in parts."""
    size: int = process.memory_full_info().pss
    return size


def main() -> None:
    python, module, count, keys = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    chance, peers, measured = random.Random(1), list[Peer](), Measurement()
    try:
        for _ in range(count):
            initial_peers = [peer.address for peer in chance.sample(peers, min(3, len(peers)))]
            peers.append(Peer(python, module, initial_peers))
        for peer in peers[1:]:
            measured.add("join, ms", 1000 * peer.join_seconds)
        measure(peers, keys, measured)
        measured.add("operations that failed, %", 100 * measured.failures / measured.operations)
        for peer in peers:
            tree = [root := psutil.Process(peer.process.pid), *root.children(recursive=True)]
            measured.add("memory of a peer (PSS of all its processes), MiB", sum(map(pss, tree)) / 2**20)
            measured.add("processes of a peer, count", len(tree))
    finally:
        for peer in peers:
            assert peer.process.stdin is not None
            peer.process.stdin.close()
        for peer in peers:
            try:
                peer.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                kill_tree(peer.process)
    print(json.dumps(measured.samples))


if __name__ == "__main__":
    main()
