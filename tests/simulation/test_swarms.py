"""Whole swarms, simulated from a seed: what they must do whatever happens. A failure prints what replays it.

Each simulation is a process of its own, whose hash seed is fixed: the order of sets is part of what replays.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.simulation import Conditions, Result, command

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("HIVEMIND_P2P_SIMULATION_SEED", "1"))


def simulate(conditions: Conditions) -> Result:
    """Run a simulation as its command would."""
    words = shlex.split(command(conditions))
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [sys.executable, *words[2:]], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=1500
    )
    assert done.returncode == 0, f"replay with: {command(conditions)}\n{done.stderr[-5000:]}"
    values = json.loads(done.stdout.splitlines()[-1])
    del values["conditions"]
    return Result(**values)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def check(conditions: Conditions, result: Result, *, success: float = 0.999) -> None:
    """What every swarm owes its users."""
    replay = f"replay with: {command(conditions)}"
    assert result.stored == result.stores > 0, replay
    assert not result.lost, f"acknowledged, held by a living node, and not found: {result.lost}\n{replay}"
    assert result.success >= success, f"{result.found} of {result.gets} gets found their record\n{replay}"
    assert not result.unsound, f"{result.unsound}\n{replay}"
    assert percentile(result.hops, 0.99) <= math.log2(conditions.nodes), f"{sorted(result.hops)[-9:]}\n{replay}"


@pytest.mark.parametrize(
    "conditions",
    [
        pytest.param(Conditions(nodes=60, seed=SEED, churn=0, loss=0, bad=0, operations=60), id="calm"),
        pytest.param(Conditions(nodes=60, seed=SEED, churn=2, loss=0.1, bad=0, operations=60), id="churn and loss"),
        pytest.param(Conditions(nodes=60, seed=SEED, churn=0, loss=0, bad=0.3, operations=60), id="bad peers"),
    ],
)
def test_a_small_swarm(conditions: Conditions):
    check(conditions, simulate(conditions))


def test_a_partition_heals():
    """Who is cut off from every holder finds nothing meanwhile; half a minute later everything is found everywhere."""
    conditions = Conditions(nodes=60, seed=SEED, churn=0, bad=0, loss=0.02, operations=150, minutes=6, partition=True)
    result = simulate(conditions)
    replay = f"replay with: {command(conditions)}"
    check(conditions, result)
    assert 5 < result.cut_found < result.cut_gets, replay
    assert percentile(result.get_seconds, 0.99) < 35, replay


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    conditions = Conditions(nodes=25, seed=SEED, operations=20, churn=6, bad=0.2)
    runs = [simulate(conditions), simulate(conditions), simulate(Conditions(**{**vars(conditions), "seed": SEED + 1}))]
    for run in runs:
        run.wall_seconds = 0.0
    assert runs[0] == runs[1]
    assert runs[0].get_seconds != runs[2].get_seconds


def test_a_thousand_nodes():
    """Half of them replaced per hour, a tenth silent, slow or lying, 10 % loss, round trips of 20-200 ms."""
    conditions = Conditions(nodes=1000, seed=SEED, operations=150, minutes=4)
    result = simulate(conditions)
    check(conditions, result)
    replay = f"replay with: {command(conditions)}"
    assert result.replaced > 15, replay
    assert statistics.median(result.get_seconds) < 1.5, replay
    assert percentile(result.get_seconds, 0.99) < 10, replay
    assert result.dead_contacts < 0.2, replay
