"""From the start of a process to a peer that serves: seconds, memory and processes, of a DHT peer and of a server.

One start of each goes before those that count: from the second on, Python finds all modules compiled, if it may keep
them, as it may wherever ``PYTHONDONTWRITEBYTECODE`` is not set.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import psutil

from benchmarks.processes import kill_tree
from benchmarks.report import INTEROP_PYTHON, ROOT, Row, options, publish, systems

PEERS = {
    "DHT peer": "dht = hm.DHT(start=True, host_maddrs=['/ip4/127.0.0.1/tcp/0'])",
    "ffn server": (
        "from {server} import Server; server = Server.create(expert_uids=['ffn.0.0'], expert_cls='ffn',"
        " hidden_dim=1024, host_maddrs=['/ip4/127.0.0.1/tcp/0'], start=True)"
    ),
}
MODULES = {"ours": ("hivemind_p2p", "hivemind_p2p"), "hivemind": ("hivemind", "hivemind.moe")}


def main() -> None:
    """Run every peer of every system in turn, several times."""
    parser = options(__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each (default: 5)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as compiled:
        os.environ["PYTHONPYCACHEPREFIX"] = compiled
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        rows = [row for peer, code in PEERS.items() for row in measure(peer, code, arguments.only, arguments.runs)]
    publish("start-up", rows, arguments.json)


def measure(peer: str, code: str, only: str | None, runs: int) -> list[Row]:
    """Start a peer of each system by turns."""
    ready, memory = Row(f"{peer}: ready after", "s"), Row(f"{peer}: memory (PSS of all its processes)", "MiB")
    processes = Row(f"{peer}: processes", "count")
    for system in systems(only):
        start_once(system, code)
    for _ in range(runs):
        for system in systems(only):
            seconds, mebibytes, count = start_once(system, code)
            ready.add(system, seconds)
            memory.add(system, mebibytes)
            processes.add(system, count)
    return [ready, memory, processes]


def start_once(system: str, code: str) -> tuple[float, float, int]:
    """Start one peer in a fresh interpreter: seconds until it serves, MiB and processes once it does."""
    module, server = MODULES[system]
    python = sys.executable if system == "ours" else str(INTEROP_PYTHON)
    program = f"import {module} as hm; {code.format(server=server)}; print('ready', flush=True); input()"
    began = time.perf_counter()
    process = subprocess.Popen(
        [python, "-c", f"if __name__ == '__main__':\n    {program}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{system} did not start: {python} -c {program!r} ended with {process.wait()}")
        seconds = time.perf_counter() - began
        root = psutil.Process(process.pid)
        tree = [root, *root.children(recursive=True)]
        return seconds, sum(peer.memory_full_info().pss for peer in tree) / 2**20, len(tree)
    finally:
        kill_tree(process)


if __name__ == "__main__":
    main()
