"""A mixture of 16 experts on one server, called by one trainer: time per batch, beside hivemind in the same run.

A batch of 64 with k = 4 is 256 calls for hivemind, one for each sample and expert; here it is 16, one for each expert.
"here" is what the server computes for such a batch, called in one process without a network: nobody can be faster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.experts import Peer
from benchmarks.processes import kill_tree
from benchmarks.report import Row, options, publish, systems

BATCHES = [
    ("batch 64, k = 4, forward", {"rows": 64, "k": 4, "backward": False}),
    ("batch 64, k = 4, forward and backward", {"rows": 64, "k": 4, "backward": True}),
    ("batch 64, k = 1, forward", {"rows": 64, "k": 1, "backward": False}),
    ("batch 1, k = 4, forward", {"rows": 1, "k": 4, "backward": False}),
]
LARGE = [("batch 1024, k = 4, forward and backward", {"rows": 1024, "k": 4, "backward": True})]


@contextmanager
def trainer(system: str, torch_threads: int) -> Iterator[Peer]:
    """A trainer in the swarm of a server, ready; both killed at the end."""
    peers: list[Peer] = []
    try:
        peers.append(Peer(system, "server", str(torch_threads), torch_threads, "moe_peer.py"))
        known = json.dumps(json.loads(peers[0].answer())["peers"])
        peers.append(Peer(system, "client", known, 1, "moe_peer.py"))
        peers[1].answer()
        yield peers[1]
    finally:
        for peer in peers:
            kill_tree(peer.process)


@contextmanager
def without_network(torch_threads: int) -> Iterator[Peer]:
    """The same experts in one process."""
    peer = Peer("ours", "here", "", torch_threads, "moe_peer.py")
    try:
        peer.answer()
        yield peer
    finally:
        kill_tree(peer.process)


def measure(peer: Peer, order: dict[str, Any], calls: int) -> list[float]:
    """The seconds of each batch."""
    peer.ask({**order, "calls": calls})
    times: list[float] = json.loads(peer.answer())["times"]
    return times


def main() -> None:
    """Alternate between the systems, row by row, round by round; the largest batches only here."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each row (default: 5)")
    parser.add_argument("--calls", type=int, default=3, help="batches of each system in a round (default: 3)")
    parser.add_argument("--torch-threads", type=int, default=2, help="torch threads of a server (default: 2)")
    arguments = parser.parse_args()
    rows = []
    with ExitStack() as stack:
        trainers = {
            name: stack.enter_context(trainer(name, arguments.torch_threads)) for name in systems(arguments.only)
        }
        trainers["here"] = stack.enter_context(without_network(arguments.torch_threads))
        for name, order in BATCHES + LARGE:
            took, speed = Row(name, "ms"), Row(f"{name}: samples", "per second", better="higher")
            measured = {key: peer for key, peer in trainers.items() if (name, order) in BATCHES or key != "hivemind"}
            for peer in measured.values():
                measure(peer, order, 1)  # connects, and asks what experts take
            for _ in range(arguments.rounds):
                for system, peer in measured.items():
                    times = measure(peer, order, arguments.calls)
                    took.add(system, *(seconds * 1000 for seconds in times))
                    speed.add(system, order["rows"] * len(times) / sum(times))
            rows += [took, speed]
    publish("a mixture of 16 experts, hidden size 512", rows, arguments.json)


if __name__ == "__main__":
    main()
