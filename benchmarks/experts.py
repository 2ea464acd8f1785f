"""One expert called by one client, and by four: latency and throughput, beside hivemind in the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from benchmarks.processes import kill_tree
from benchmarks.report import INTEROP_PYTHON, ROOT, Row, options, publish, systems

LATENCIES = [
    ("nop, forward 1 x 1024", {"expert": "nop.0", "rows": 1, "backward": False}, 100),
    ("nop, forward 256 x 1024 (1 MiB)", {"expert": "nop.0", "rows": 256, "backward": False}, 30),
    ("nop, forward 4096 x 1024 (16 MiB)", {"expert": "nop.0", "rows": 4096, "backward": False}, 6),
    ("nop, forward and backward 1 x 1024", {"expert": "nop.0", "rows": 1, "backward": True}, 50),
    ("nop, forward and backward 256 x 1024", {"expert": "nop.0", "rows": 256, "backward": True}, 15),
]
LOADS = [
    ("nop, 1 client at batch 1: requests", {"expert": "nop.0", "rows": 1, "backward": False}, 1),
    ("nop, 4 clients at batch 2048: samples", {"expert": "nop.0", "rows": 2048, "backward": False}, 4),
    ("ffn 1024, 4 clients at batch 2048: samples", {"expert": "ffn.0", "rows": 2048, "backward": False}, 4),
]


class Peer:
    """One process of one system, spoken to in lines of JSON."""

    def __init__(self, system: str, role: str, argument: str, torch_threads: int, file: str = "expert_peer.py") -> None:
        python = sys.executable if system == "ours" else str(INTEROP_PYTHON)
        program = ROOT / "benchmarks" / file
        threads = {"OMP_NUM_THREADS": str(torch_threads), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [python, str(program), role, system, argument],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **threads}, cwd=ROOT,
        )  # fmt: skip
        self.name = f"{system} {role}"

    def ask(self, order: dict[str, Any]) -> None:
        """Give an order; :meth:`answer` waits for what came of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the {self.name} process ended with {self.process.wait()} before it answered")
        return line


@contextmanager
def swarm(system: str, torch_threads: int, clients: int = 4, program: str = "expert_peer.py") -> Iterator[list[Peer]]:
    """A server, and clients that run a program of this folder, ready; killed at the end."""
    peers: list[Peer] = []
    try:
        peers.append(Peer(system, "server", str(torch_threads), torch_threads))
        known = json.dumps(json.loads(peers[0].answer())["peers"])
        peers += [Peer(system, "client", known, 1, program) for _ in range(clients)]
        for client in peers[1:]:
            client.answer()
        yield peers[1:]
    finally:
        for peer in peers:
            kill_tree(peer.process)


def measure(clients: list[Peer], order: dict[str, Any]) -> tuple[list[float], int]:
    """Let all the clients do the same; every call's seconds, and how many answers were cut short."""
    for client in clients:
        client.ask(order)
    answers = [json.loads(client.answer()) for client in clients]
    return [seconds for answer in answers for seconds in answer["times"]], sum(each["cut_short"] for each in answers)


def local_samples_per_second(torch_threads: int, seconds: float) -> float:
    """What the machine's own torch does with the same ``ffn`` at batch 2048, forward."""
    from hivemind_p2p.server.expert_classes import expert_classes

    torch.set_num_threads(torch_threads)
    module, inputs = expert_classes["ffn"].module_class(1024), torch.randn(2048, 1024)
    began, done = time.perf_counter(), 0
    with torch.inference_mode():
        while time.perf_counter() - began < seconds:
            module(inputs)
            done += 2048
    return done / (time.perf_counter() - began)


def main() -> None:
    """Alternate between the systems, row by row, round by round."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each row (default: 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one load (default: 3)")
    parser.add_argument("--torch-threads", type=int, default=2, help="torch threads of a server (default: 2)")
    arguments = parser.parse_args()
    rows, lost = [], Row("answers cut short", "count")
    with ExitStack() as stack:
        swarms = {name: stack.enter_context(swarm(name, arguments.torch_threads)) for name in systems(arguments.only)}
        for name, order, calls in LATENCIES:
            row = Row(name, "ms")
            for _ in range(arguments.rounds):
                for system, clients in swarms.items():
                    times, cut_short = measure(clients[:1], {**order, "calls": calls})
                    row.add(system, *(seconds * 1000 for seconds in times))
                    lost.add(system, cut_short)
            rows.append(row)
        for name, order, count in LOADS:
            row = Row(name, "per second", better="higher")
            for _ in range(arguments.rounds):
                for system, clients in swarms.items():
                    times, cut_short = measure(clients[:count], {**order, "seconds": arguments.seconds})
                    row.add(system, len(times) * order["rows"] / max(arguments.seconds, sum(times) / count))
                    lost.add(system, cut_short)
            rows.append(row)
    for row in rows:
        if row.name.startswith("ffn"):
            row.add("torch, locally", local_samples_per_second(arguments.torch_threads, arguments.seconds))
    lost.samples = {system: [sum(counts)] for system, counts in lost.samples.items()}
    publish("one expert", [*rows, lost], arguments.json)


if __name__ == "__main__":
    main()
