"""``hivemind-p2p ping --until-direct`` behind NATs: relayed first, then direct, or not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from tests.nat.lab.lab import Lab
from tests.nat.lab.namespaces import Host
from tests.nat.lab.peers import Peer


def ping(host: Host, *arguments: str) -> tuple[int, list[str]]:
    """The exit status, and the lines that it printed."""
    command = [sys.executable, "-m", "hivemind_p2p", "ping", "--until-direct", *arguments]
    done = host.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_from_relayed_to_direct(lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]):
    boot = bootstrap()
    server = start(lab.site("b", "port-restricted").host, initial_peers=boot.maddrs)
    site = lab.site("a", "port-restricted")
    code, [out] = ping(site.host, server.address, "--json")
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
    code, [relayed, verdict] = ping(client, server.peer_id, "--initial-peers", *boot.maddrs, "--timeout", "2")
    assert code == 1
    assert f"relayed by {boot.peer_id} at " in relayed
    assert f"{server.peer_id} is still relayed after 2 s" in verdict
