"""``hivemind-p2p doctor`` without a laboratory: of running nodes, of none, and of a swarm that is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from hivemind_p2p.cli.doctor import _address as described

LISTEN = ["--host-maddrs", "/ip4/127.0.0.1/tcp/0"]


@pytest.fixture
def doctor(command) -> Callable[..., Any]:
    return partial(command, "doctor")


def test_it_asks_the_nodes_that_run_here(start_node, doctor):
    one = start_node("bootstrap", *LISTEN)
    two = start_node("bootstrap", *LISTEN, "--initial-peers", one.address)
    done = doctor("--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = {node["peer_id"]: node for node in json.loads(done.stdout)["nodes"]}
    assert set(told) == {one.ready["peer_id"], two.ready["peer_id"]}
    health = told[two.ready["peer_id"]]
    assert (health["grade"], health["nat"]["kind"], health["direct_peers"]) == ("fair", "local", 1)
    assert abs(health["clock_offset"]) < 1
    done = doctor("--node", one.ready["peer_id"][-8:])
    assert done.stdout.startswith(" FAIR  This node knows no peer outside its own network.")
    assert f"peer id       {one.ready['peer_id']}" in done.stdout
    assert "run this again with `--initial-peers`" in " ".join(done.stdout.split())


def test_without_a_node_it_starts_one(doctor):
    done = doctor(*LISTEN)
    assert (done.returncode, done.stderr) == (0, "")
    assert "knows no peer that could tell" in done.stdout


def test_a_swarm_that_cannot_be_joined_is_exit_1(start_node, doctor):
    gone = start_node("bootstrap", *LISTEN)
    assert gone.stop()[0] == 0
    done = doctor(*LISTEN, "--initial-peers", gone.address)
    assert (done.returncode, done.stderr) == (1, "")
    assert " BAD  This node could not join the swarm." in done.stdout
    assert "refused" in done.stdout
    assert "On the peer's machine, run `hivemind-p2p doctor`" in done.stdout


def test_a_node_that_is_not_running_is_an_error(doctor):
    done = doctor("--node", "nobody")
    assert done.returncode == 1
    assert "no node whose peer id ends with nobody" in done.stderr


def test_it_says_who_got_in_and_who_proved_it():
    trials = [(True, 2), (False, 2), (True, 1)]
    address = {
        "maddr": "/ip4/44.0.0.1/tcp/1",
        "verdict": "reachable",
        "trials": [{"observer": "12345678", "reached": got, "age": 3.4, "autonat": by} for got, by in trials],
    }
    assert described(address) == (
        "/ip4/44.0.0.1/tcp/1: reachable (...12345678 got in 3 s ago, proved, ...12345678 did not get in 3 s ago, "
        "...12345678 got in 3 s ago)"
    )
