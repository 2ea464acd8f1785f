"""``hivemind-p2p bootstrap`` and ``ping`` as processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import trio

from hivemind_p2p import Node
from hivemind_p2p.dht import get_dht_time
from hivemind_p2p.errors import StreamError

HOST = ("--host-maddrs", "/ip4/127.0.0.1/tcp/0")


def ping(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hivemind_p2p", "ping", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_bootstrap_peer_stops_cleanly_in_the_middle_of_its_swarm(start_node, number):
    bootstrap = start_node("bootstrap", *HOST)
    async with Node([bootstrap.address], host_maddrs=["/ip4/127.0.0.1/tcp/0"]) as node:
        assert await node.dht.store("key", 1, get_dht_time() + 60, exclude_self=True)
        [connection] = node.connections()
        stream = await node.open_stream(connection.peer_id, "/ipfs/ping/1.0.0")
        bootstrap.process.send_signal(number)
        out, err = await trio.to_thread.run_sync(bootstrap.process.communicate)
        assert (bootstrap.process.returncode, out, err) == (0, "", "")
        with trio.fail_after(10), pytest.raises(StreamError):  # it said goodbye
            await stream.receive_some()
        assert node.connections() == []


def test_ping_tells_how_long_it_took(start_node):
    bootstrap = start_node("bootstrap", *HOST)
    done = ping(bootstrap.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert "answered in" in done.stdout
    done = ping(bootstrap.address, "--json")
    told = json.loads(done.stdout)
    assert told["peer_id"] == bootstrap.address.rpartition("/")[2]
    assert 0 < told["ping_ms"] < 5000
    assert abs(told["clock_offset_s"]) < 5


def test_ping_until_direct_says_how_the_peer_is_reached(start_node):
    bootstrap = start_node("bootstrap", *HOST)
    done = ping(bootstrap.address, "--until-direct")
    assert (done.returncode, done.stderr) == (0, "")
    path, verdict = done.stdout.splitlines()
    assert " direct at /ip4/127.0.0.1/tcp/" in path
    assert "round trip" in path
    assert "directly from the beginning" in verdict
    told = json.loads(ping(bootstrap.address, "--until-direct", "--json").stdout)
    assert told["direct"] is True
    assert [path["path"] for path in told["paths"]] == ["direct"]
    assert 0 < told["paths"][0]["rtt_ms"] < 5000


def test_a_peer_of_the_swarm_is_pinged_by_its_id_alone(start_node):
    bootstrap = start_node("bootstrap", *HOST)
    other = start_node("bootstrap", *HOST, "--initial-peers", bootstrap.address)
    peer_id = other.ready["peer_id"]
    done = ping(peer_id, "--initial-peers", bootstrap.address, "--json")
    assert (done.returncode, json.loads(done.stdout)["peer_id"]) == (0, peer_id), done.stderr
    done = ping(peer_id)
    assert done.returncode == 1
    assert "--initial-peers" in done.stderr


def test_ping_of_nobody_fails_with_the_reason(start_node):
    bootstrap = start_node("bootstrap", *HOST)
    assert bootstrap.stop()[0] == 0
    done = ping(bootstrap.address, "--timeout", "5")
    assert (done.returncode, done.stdout) == (1, "")
    assert "refused" in done.stderr
    assert "Traceback" not in done.stderr


def test_ping_without_an_address_is_the_health_check_of_this_machine(start_node, tmp_path):
    identity = ("--identity-path", str(tmp_path / "identity"))
    port = start_node("bootstrap", *HOST, *identity).address.split("/")[4]
    done = ping("--host-maddrs", f"/ip4/0.0.0.0/tcp/{port}", *identity)
    assert done.returncode == 0, done.stderr
    done = ping("--host-maddrs", "/ip4/0.0.0.0/tcp/0", *identity)
    assert done.returncode == 1
    assert "fixed port" in done.stderr
