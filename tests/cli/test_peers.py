"""``hivemind-p2p peers``: what running nodes say of their connections."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from hivemind_p2p.cli.peers import duration, size

LISTEN = ["--host-maddrs", "/ip4/127.0.0.1/tcp/0"]


@pytest.fixture
def peers(command) -> Callable[..., Any]:
    return partial(command, "peers")


def test_running_nodes_tell_their_connections(start_node, peers):
    bootstrap = start_node("bootstrap", *LISTEN)
    server = ["server", *LISTEN, "--initial-peers", bootstrap.address, "--expert-cls", "nop", "--hidden-dim", "8"]
    hosting = start_node(*server)
    done = peers("--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = {node["peer_id"]: node for node in json.loads(done.stdout)["nodes"]}
    assert set(told) == {bootstrap.ready["peer_id"], hosting.ready["peer_id"]}
    [peer] = told[hosting.ready["peer_id"]]["peers"]
    assert peer["peer_id"] == bootstrap.ready["peer_id"]
    assert peer["address"] == bootstrap.address.partition("/p2p/")[0]
    assert (peer["path"], peer["relay"], peer["outbound"], peer["in_use"]) == ("direct", None, True, True)
    assert 0 < peer["rtt_ms"] < 5000
    assert peer["open_for_s"] > 0
    assert min(peer["bytes_sent"], peer["bytes_received"]) > 100
    assert peer["agent"] == "hivemind-p2p"

    done = peers(hosting.ready["peer_id"][-8:])
    assert f"{hosting.ready['peer_id']} (process {hosting.process.pid}) is connected to 1 peer" in done.stdout
    assert bootstrap.ready["peer_id"] in done.stdout
    assert "by us" in done.stdout

    hosting.process.kill()
    hosting.process.wait()
    assert [node["peer_id"] for node in json.loads(peers("--json").stdout)["nodes"]] == [bootstrap.ready["peer_id"]]
    assert bootstrap.stop() == (0, "", "")
    done = peers()
    assert done.returncode == 1
    assert "no node of this user runs on this machine" in done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (3660, "1 h 1 min"), (90000, "1 d 1 h")]
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1.5 * 2**20, "1.5 MiB"), (2**52, "4096.0 TiB")],
)
def test_sizes_are_short(count, text):
    assert size(count) == text
