"""What the commands say behind NATs: ``ping --until-direct`` and ``peers``."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable

from tests.nat.lab.lab import Lab
from tests.nat.lab.namespaces import Host
from tests.nat.lab.peers import Peer


def run(host: Host, *arguments: str) -> tuple[int, list[str]]:
    """The exit status of a command, and the lines that it printed."""
    command = [sys.executable, "-m", "hivemind_p2p", *arguments]
    done = host.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def ping(host: Host, *arguments: str) -> tuple[int, list[str]]:
    return run(host, "ping", "--until-direct", *arguments)


def test_from_relayed_to_direct(lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]):
    boot = bootstrap()
    server = start(lab.site("b", "port-restricted").host, initial_peers=boot.maddrs)
    site = lab.site("a", "port-restricted")
    code, [out] = ping(site.host, server.address, "--json", "--timeout", "60")
    told = json.loads(out)
    assert (code, told["direct"], told["peer_id"]) == (0, True, server.peer_id)
    relayed, direct = told["paths"]
    assert (relayed["path"], relayed["relay"]) == ("relayed", boot.peer_id)
    assert relayed["address"] == boot.maddrs[0].rpartition("/p2p/")[0]
    assert (direct["path"], direct["relay"]) == ("direct", None)
    assert direct["address"].startswith(f"/ip4/{lab.sites['b'].public_ip}/tcp/")
    assert relayed["after_s"] < direct["after_s"] == told["direct_after_s"]
    assert direct["rtt_ms"] > 0


def test_relayed_for_good_is_exit_1(lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]):
    boot = bootstrap()
    server = start(lab.site("b", "symmetric").host, initial_peers=boot.maddrs)
    client = lab.site("a", "symmetric").host
    code, [relayed, verdict] = ping(client, server.peer_id, "--initial-peers", *boot.maddrs, "--timeout", "6")
    assert code == 1
    assert f"relayed by {boot.peer_id} at " in relayed
    assert f"{server.peer_id} is still relayed after 6 s" in verdict


def test_peers_names_the_relay(lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer], monkeypatch):
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("HIVEMIND_P2P_CONTROL__DIRECTORY", directory)
        boot = bootstrap()
        server = start(lab.site("b", "symmetric").host, initial_peers=boot.maddrs)
        asked = {"control.serve": True, "control.directory": directory}
        client = start(lab.site("a", "symmetric").host, initial_peers=boot.maddrs, settings=asked)
        assert client.ask("call", server.peer_id, 100_000) == f"relayed by {boot.peer_id}"
        code, [out] = run(client.host, "peers", "--json")
        [node] = json.loads(out)["nodes"]
        assert (code, node["peer_id"]) == (0, client.peer_id)
        relayed = next(peer for peer in node["peers"] if peer["peer_id"] == server.peer_id)
        assert (relayed["path"], relayed["relay"]) == ("relayed", boot.peer_id)
        assert relayed["bytes_sent"] > 100_000
        assert relayed["rtt_ms"] > 0
        code, lines = run(client.host, "peers")
        assert "is connected to 2 peers, 1 directly, 1 relayed" in "".join(lines)
