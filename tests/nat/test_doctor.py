"""The doctor behind every kind of NAT: it names the kind, the verdict and what to do."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.nat.lab.kinds import KINDS
from tests.nat.lab.lab import Lab, Site
from tests.nat.lab.peers import Peer, peers

NAMES = {
    "none": "public",
    "firewalled": "firewalled",
    "full-cone": "cone",
    "restricted": "cone",
    "port-restricted": "port-restricted",
    "symmetric": "symmetric",
    "udp-blocked": "port-restricted",
    "hairpin": "port-restricted",
    "cgnat": "port-restricted",
    "cgnat-symmetric": "symmetric",
    "reject": "port-restricted",
}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def healths(_labs_are_possible: None) -> Iterator[dict[str, Any]]:
    """What a node behind each kind says of itself, in a swarm with two public peers."""
    with Lab(f"d{os.getpid()}-{next(_numbers)}", delay_ms=2) as lab, peers() as start:
        known: list[str] = []
        for name in ("one", "two"):
            public = {"host_maddrs": ["/ip4/0.0.0.0/tcp/4001"], "settings": {"relay.serve": "always"}}
            known += start(lab.public(name), initial_peers=known, **public).maddrs

        def ask(site: Site) -> tuple[str, dict[str, Any]]:
            node = start(site.host, initial_peers=known, host_maddrs=["/ip4/0.0.0.0/tcp/5005"])
            return site.kind, {"ip": site.public_ip, "here": site.host.ip, **node.ask("health", 2)}

        sites = [lab.site(f"s{number}", kind) for number, kind in enumerate(KINDS)]
        with ThreadPoolExecutor(6) as pool:  # they mostly wait for dials that nobody answers
            yield dict(pool.map(ask, sites))


@pytest.mark.parametrize("kind", KINDS)
def test_it_names_the_nat(healths: dict[str, Any], kind: str):
    nat = healths[kind]["nat"]
    assert (nat["kind"], nat["certain"]) == (NAMES[kind], True), healths[kind]
    assert nat["behind_carrier"] is kind.startswith("cgnat"), healths[kind]
    assert healths[kind]["public_ip"] == healths[kind]["ip"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_that_means(healths: dict[str, Any], kind: str):
    health = healths[kind]
    steps = " ".join(health["steps"])
    if NAMES[kind] == "public":
        assert (health["grade"], health["relays"], health["steps"]) == ("good", (), [])
        assert health["verdict"] == f"Others reach this node directly at /ip4/{health['ip']}/tcp/5005."
        assert {trial["autonat"] for address in health["addresses"] for trial in address["trials"]} == {2}
        return
    assert len(health["relays"]) == 2
    if NAMES[kind] in ("cone", "port-restricted"):
        assert (health["grade"], health["steps"]) == ("good", [])
        assert "holes can be punched" in health["verdict"]
    elif NAMES[kind] == "firewalled":
        assert health["grade"] == "fair"
        assert "ufw allow 5005/tcp" in steps
    else:
        assert health["grade"] == "fair"
        assert "this one is symmetric" in health["verdict"]
        if kind == "symmetric":
            assert f"forward TCP port 5005 to {health['here']} port 5005" in steps
            assert f"--announce-maddrs /ip4/{health['ip']}/tcp/5005" in steps
        else:
            assert "ask the provider for a public IPv4 address" in steps


def test_the_screen(lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]):
    boot = bootstrap()
    site = lab.site("a", "symmetric")
    command = [sys.executable, "-m", "hivemind_p2p", "doctor", "--timeout", "60", "--initial-peers", *boot.maddrs]
    done = site.host.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "FAIR  Others come through 1 relay; directly only" in done.stdout
    assert "probably symmetric" in done.stdout  # one peer cannot know
    assert f"/ip4/{site.public_ip}/tcp/" in done.stdout
    assert f"...{boot.peer_id[-8:]} did not get in" in done.stdout
    assert "listen on a fixed port: `--host-maddrs /ip4/0.0.0.0/tcp/31337`" in done.stdout
