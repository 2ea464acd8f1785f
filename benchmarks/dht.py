"""The DHT of a local swarm: join, store, get, bulk calls, CPU and bytes. With --simulate: large swarms, simulated."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import INTEROP_PYTHON, ROOT, Row, options, publish, systems
from benchmarks.simulation import Conditions, command

PYTHONS = {"ours": (sys.executable, "hivemind_p2p"), "hivemind": (str(INTEROP_PYTHON), "hivemind")}
CHURN = (0.0, 0.5, 1.0, 2.0)
"""Parts of the nodes that are replaced in an hour, for the plots."""


def main() -> None:
    """Compare with hivemind, or simulate."""
    parser = options(__doc__)
    parser.add_argument("--peers", type=int, nargs="+", default=[16, 32], help="sizes of local swarms (default: 16 32)")
    parser.add_argument("--keys", type=int, default=60, help="records stored and read (default: 60)")
    parser.add_argument("--rounds", type=int, default=1, help="swarms of each size and system, in turn (default: 1)")
    parser.add_argument("--simulate", type=int, metavar="NODES", help="simulate swarms of up to so many nodes instead")
    parser.add_argument("--seed", type=int, default=1, help="of the simulations (default: 1)")
    parser.add_argument("--operations", type=int, default=200, help="records in a simulation (default: 200)")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the simulations into DIR (docs/plots)")
    arguments = parser.parse_args()
    if arguments.simulate:
        simulate(arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Swarms of every system in turn, each in a process of its own."""
    rows: dict[tuple[int, str], Row] = {}
    for peers, _ in itertools.product(arguments.peers, range(arguments.rounds)):
        for system in systems(arguments.only):
            for name, samples in swarm(system, peers, arguments.keys).items():
                what, _, unit = name.rpartition(", ")
                rows.setdefault((peers, name), Row(f"{peers} peers: {what}", unit)).add(system, *samples)
    publish("DHT of local peers", list(rows.values()), arguments.json)


def swarm(system: str, peers: int, keys: int) -> dict[str, list[float]]:
    """Samples of one swarm by what was measured; it is alone in its network, where that is possible, to count bytes."""
    python, module = PYTHONS[system]
    words = [sys.executable, "-m", "benchmarks.dht_swarm", python, module, str(peers), str(keys)]
    alone = ["unshare", "--net", "sh", "-c", f"ip link set lo up && exec {shlex.join(words)}"]
    if subprocess.run(["unshare", "--net", "ip", "link"], capture_output=True).returncode == 0:
        words = alone
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=900)
    if done.returncode:
        raise SystemExit(f"the swarm of {system} failed: {shlex.join(words)}\n{done.stderr[-3000:]}")
    result: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return result


def simulate(arguments: argparse.Namespace) -> None:
    """Churn, at a middle size; then sizes up to the one that was asked for, under the default conditions."""
    sizes = [size for size in (100, 300, 1000, 3000, 10_000) if size < arguments.simulate] + [arguments.simulate]
    middle = min(300, arguments.simulate)
    by_size, by_churn = dict[int, dict[str, Any]](), dict[float, dict[str, Any]]()
    given = {"seed": arguments.seed, "operations": arguments.operations}
    for churn in CHURN:
        by_churn[churn] = run(Conditions(nodes=middle, churn=churn, **given))
    for size in sizes:  # the largest takes longest, and may be cut short: what there is by then is drawn
        usual = size == middle and Conditions().churn in by_churn
        by_size[size] = by_churn[Conditions().churn] if usual else run(Conditions(nodes=size, **given))
        rows = [row for size, result in by_size.items() for row in rows_of(f"{size} nodes", result)]
        for churn, result in by_churn.items():
            rows += rows_of(f"{middle} nodes, {churn:.0%} replaced per hour", result)
        publish(f"simulated swarms, seed {arguments.seed}", rows, arguments.json)
        if arguments.plots:
            from benchmarks.dht_plots import draw

            for path in draw(by_size, by_churn, middle, arguments.plots):
                print(f"drawn: {path}", flush=True)


def run(conditions: Conditions) -> dict[str, Any]:
    """One simulation, in a process of its own, so that it replays."""
    words = shlex.split(command(conditions))
    print(command(conditions), file=sys.stderr, flush=True)
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run([sys.executable, *words[2:]], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise SystemExit(f"the simulation failed; it is replayed by: {command(conditions)}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def rows_of(what: str, result: dict[str, Any]) -> list[Row]:
    """The figures of one simulation."""
    success = result["found"] / result["gets"] if result["gets"] else math.nan
    rows = [
        Row(f"{what}: gets that found", "%", "higher", {"simulated": [100 * success]}),
        Row(f"{what}: get", "s", samples={"simulated": result["get_seconds"]}),
        Row(f"{what}: store", "s", samples={"simulated": result["store_seconds"]}),
        Row(f"{what}: join", "s", samples={"simulated": result["join_seconds"]}),
        Row(f"{what}: hops", "peers", samples={"simulated": result["hops"]}),
        Row(f"{what}: real time of the run", "s", samples={"simulated": [result["wall_seconds"]]}),
    ]
    return [row for row in rows if row.samples["simulated"]]


if __name__ == "__main__":
    main()
