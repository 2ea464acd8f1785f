"""An expert server under an hour of load: clients of all kinds come and go, some are killed; does it grow?

Its memory, threads, sockets and files are looked at each minute. What it holds in the second half of the time (without
the first tenth, in which caches fill) is compared with the first half; it fails when there is more.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.processes import kill_tree
from benchmarks.report import ROOT, Row, publish

HIDDEN = 256
ROWS = (1, 1, 1, 16, 16, 128, 128, 1024, 4096)
COMPRESSIONS = (None, "UNIFORM_8BIT", "FLOAT16", "BLOCK_INT8", "auto")
UIDS = [f"ffn.{i}" for i in range(4)]
MAY_GROW = 0.03
"""By how much the second half may hold more than the first: what an allocator does by itself."""
UNTIL_KILLED = -1.0


@dataclass(frozen=True)
class Sample:
    """What the server held at one time."""

    seconds: float
    memory: int
    threads: int
    files: int


def use(peers: list[str], seconds: float, rate: float, seed: int) -> None:
    """One client: calls at random, ``rate`` a second, for so long; what came of them on its standard output."""
    import torch

    from hivemind_p2p import DHT, get_experts
    from hivemind_p2p.errors import HivemindError

    torch.set_num_threads(1)
    chance, outcomes = random.Random(seed), Counter[str]()
    with DHT(peers, start=True, client_mode=True) as dht:
        experts = [each for each in get_experts(dht, UIDS, compression=chance.choice(COMPRESSIONS)) if each]
        until = time.monotonic() + seconds if seconds != UNTIL_KILLED else float("inf")
        while time.monotonic() < until:
            time.sleep(chance.expovariate(rate))
            inputs = torch.randn(chance.choice(ROWS), HIDDEN, requires_grad=True)
            try:
                outputs = chance.choice(experts)(inputs)
                if chance.random() < 0.5:
                    outputs.square().mean().backward()
                outcomes["answered"] += 1
            except HivemindError as error:
                outcomes[type(error).__name__] += 1
    print(json.dumps(outcomes))


def start_client(peers: list[str], seconds: float, rate: float, seed: int) -> subprocess.Popen[str]:
    """A client in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.server_soak", "--client", json.dumps([peers, seconds, rate, seed])]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def look(process: psutil.Process, began: float) -> Sample:
    """What a process holds now."""
    memory = process.memory_full_info().uss
    return Sample(time.monotonic() - began, memory, process.num_threads(), process.num_fds())


def verdict(samples: list[Sample]) -> tuple[bool, str]:
    """Whether the server holds as much as before, and how that shows."""
    steady = samples[max(1, len(samples) // 10) :]
    if len(steady) < 4:
        return False, f"{len(samples)} looks at the server say nothing about growth; let it take longer"
    first, second = steady[: len(steady) // 2], steady[len(steady) // 2 :]
    flat, words = True, []
    for name, unit in (("memory", 2**20), ("threads", 1), ("files", 1)):
        before, after = (statistics.median(getattr(each, name) for each in half) / unit for half in (first, second))
        flat = flat and after <= before * (1 + MAY_GROW) + (unit == 1)
        words.append(f"{name} {before:.0f} -> {after:.0f}")
    slope, _ = statistics.linear_regression([each.seconds for each in steady], [each.memory for each in steady])
    return flat, f"{'flat' if flat else 'growing'}: {', '.join(words)}; {slope * 3600 / 2**20:+.1f} MiB an hour"


def soak(minutes: float, clients: int, rate: float, seed: int) -> tuple[list[Sample], Counter[str]]:
    """Load a server; what it held, and what came of the calls."""
    chance, outcomes = random.Random(seed), Counter[str]()
    serve = [sys.executable, "-m", "hivemind_p2p", "server", "--json", "--no-mdns", "--expert-uids", *UIDS]
    serve += ["--hidden-dim", str(HIDDEN), "--host-maddrs", "/ip4/127.0.0.1/tcp/0"]
    server = subprocess.Popen(serve, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    running: dict[subprocess.Popen[str], float] = {}
    samples: list[Sample] = []
    try:
        assert server.stdout is not None
        peers = json.loads(server.stdout.readline())["addresses"]
        began, watched = time.monotonic(), psutil.Process(server.pid)
        every = min(60.0, minutes * 60 / 20)
        while (now := time.monotonic() - began) < minutes * 60:
            for process in [each for each, until in running.items() if each.poll() is not None or until < now]:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    outcomes["clients killed"] += 1
                said, _ = process.communicate()
                outcomes.update(json.loads(said) if said else {})
                outcomes["clients that failed"] += process.returncode not in (0, -signal.SIGKILL)
                del running[process]
            while len(running) < clients:
                lives, dies = chance.uniform(0.5, 2) * every, chance.random() < 0.3
                asked = UNTIL_KILLED if dies else lives
                process = start_client(peers, asked, rate / clients, chance.randrange(2**32))
                running[process] = now + lives if dies else float("inf")
            if now >= every * len(samples):
                samples.append(look(watched, began))
                print(f"{now / 60:6.1f} min: {samples[-1]}", file=sys.stderr, flush=True)
            time.sleep(0.5)
    finally:
        for process in [server, *running]:
            kill_tree(process)
    return samples, +outcomes


def main() -> None:
    """Soak a server, then say whether it grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    parser.add_argument("--minutes", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--clients", type=int, default=4, help="at a time (default: 4)")
    parser.add_argument("--rate", type=float, default=10, help="calls a second, of all clients (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--client", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client is not None:
        use(*arguments.client)
        return
    samples, outcomes = soak(arguments.minutes, arguments.clients, arguments.rate, arguments.seed)
    flat, words = verdict(samples)
    print(f"{words}; calls and clients: {dict(outcomes)}")
    rows = [Row("memory", "MiB"), Row("threads", "count"), Row("sockets and files", "count")]
    for each in samples:
        for row, value in zip(rows, (each.memory / 2**20, each.threads, each.files), strict=True):
            row.add("ours", value)
    publish("server soak", rows, arguments.json)
    if not flat or outcomes["clients that failed"]:
        raise SystemExit("the server grew, or clients failed")


if __name__ == "__main__":
    main()
