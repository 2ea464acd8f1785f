"""One server under 1 to 64 clients, and under requests at fixed rates: throughput and latency, beside hivemind.

Closed loop: each client calls, waits for the answer, and calls again. Open loop: requests are due at the times of a
Poisson process, whatever the server does, and latency counts from when they were due; a system is spared the rates that
it did not reach with any number of clients. Clients are threads, in two processes of each system.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.experts import Peer, swarm
from benchmarks.report import Row, markdown, options, publish, systems

PROCESSES = 2
EXPERTS = [("nop, 1 row", {"expert": "nop.0", "rows": 1}), ("ffn 1024, 16 rows", {"expert": "ffn.0", "rows": 16})]
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
RATES = (100, 200, 400, 800)
REACHED = 0.9
"""The share of the throughput of a closed loop up to which a system is asked for a rate."""


class Load:
    """What was measured: a row of throughput and one of latency for each load.

    Args:
        swarms: the client processes of each system.
    """

    def __init__(self, swarms: dict[str, list[Peer]]) -> None:
        self.swarms = swarms
        self.rows: dict[str, Row] = {}
        self.failed = Row("calls that failed", "count")
        self.best: dict[str, float] = {}
        """Requests per second of ``nop``."""

    def closed(self, name: str, order: dict[str, Any], clients: int, seconds: float) -> None:
        """Let so many clients of each system call as fast as they get answers."""
        title = f"{name}, {clients} client{'s' * (clients > 1)}"
        for system, peers in self.swarms.items():
            shares = [clients // PROCESSES + (number < clients % PROCESSES) for number in range(PROCESSES)]
            orders = [{**order, "clients": share, "seconds": seconds} for share in shares if share]
            times, took = self.run(system, peers, orders)
            speed = len(times) * order["rows"] / took
            self._row(f"{title}: samples", "per second", "higher").add(system, speed)
            self._row(f"{title}: latency", "ms").add(system, *(each * 1000 for each in times))
            if order["expert"] == "nop.0":
                self.best[system] = max(self.best.get(system, 0.0), speed)

    def open(self, name: str, order: dict[str, Any], rate: float, seconds: float, seed: int) -> None:
        """Send requests to each system that can take them, at a rate."""
        for system, peers in self.swarms.items():
            if rate > REACHED * self.best[system]:
                continue
            common = {**order, "clients": 64 // PROCESSES, "seconds": seconds, "rate": rate / PROCESSES}
            orders = [{**common, "seed": PROCESSES * seed + number} for number in range(PROCESSES)]
            times, _ = self.run(system, peers, orders)
            self._row(f"{name}, {rate} requests/s: latency", "ms").add(system, *(each * 1000 for each in times))

    def _row(self, name: str, unit: str, better: str = "lower") -> Row:
        return self.rows.setdefault(name, Row(name, unit, better, tail=unit == "ms"))

    def run(self, system: str, peers: list[Peer], orders: list[dict[str, Any]]) -> tuple[list[float], float]:
        """The seconds of all calls, and how long it took."""
        for peer, order in zip(peers, orders, strict=False):
            peer.ask(order)
        answers = [json.loads(peer.answer()) for peer, _ in zip(peers, orders, strict=False)]
        self.failed.add(system, sum(answer["failed"] for answer in answers))
        return [each for answer in answers for each in answer["times"]], max(each["seconds"] for each in answers)


def main() -> None:
    """Alternate between the systems, load by load, round by round."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each load (default: 2)")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one closed loop (default: 1.5)")
    parser.add_argument("--open-seconds", type=float, default=5.0, help="length of one open loop (default: 5)")
    parser.add_argument("--torch-threads", type=int, default=2, help="torch threads of a server (default: 2)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        load = Load(
            {
                name: stack.enter_context(swarm(name, arguments.torch_threads, PROCESSES, "load_peer.py"))
                for name in systems(arguments.only)
            }
        )
        for system, peers in load.swarms.items():
            for _, order in EXPERTS:  # connects, and asks what experts take
                load.run(system, peers, [{**order, "clients": 1, "seconds": 0.1}] * PROCESSES)
        for name, order in EXPERTS:
            for clients in CLIENTS:
                for _ in range(arguments.rounds):
                    load.closed(name, order, clients, arguments.seconds)
        name, order = EXPERTS[0]
        for rate in RATES:
            for seed in range(arguments.rounds):
                load.open(name, order, rate, arguments.open_seconds, seed)
    load.failed.samples = {system: [sum(counts)] for system, counts in load.failed.samples.items()}
    rows = [*load.rows.values(), load.failed]
    publish("one server under load", rows, arguments.json)
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
