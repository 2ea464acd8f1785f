"""Routers that forward ports for who asks: miniupnpd in the laboratory, by NAT-PMP and by UPnP."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.nat.lab.igd import forwarded, forwarding
from tests.nat.lab.lab import Lab
from tests.nat.lab.peers import Peer

MAPPING = {"nat.port_mapping": True}


@pytest.fixture(autouse=True)
def _gateways_are_possible() -> None:
    if shutil.which("miniupnpd") is None:
        pytest.skip("needs miniupnpd (Debian: apt-get install miniupnpd-nftables)")


@pytest.mark.parametrize("way", ["NAT-PMP", "UPnP"])
def test_a_node_is_dialled_at_the_port_that_its_router_forwards(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer], way: str
):
    boot = bootstrap()
    site = lab.site("b", "symmetric")
    with forwarding(site, natpmp=way == "NAT-PMP", upnp=way == "UPnP"):
        listen = ["/ip4/0.0.0.0/tcp/5005"]
        node = start(site.host, initial_peers=boot.maddrs, settings=MAPPING, host_maddrs=listen)
        there = f"/ip4/{site.public_ip}/tcp/5005"
        assert node.ask("until_mapped", 40) == (f"{way}: {there} leads to port 5005", [there])
        assert "5005" in forwarded(site)
        # That is as good as a public address: no relay is needed, and it is one.
        assert node.ask("visible")[0] == f"{there}/p2p/{node.peer_id}"
        assert not any("p2p-circuit" in maddr for maddr in node.ask("visible"))
        assert node.ask("serves")
        # Behind two symmetric NATs only a relay would do without it.
        other = start(lab.site("a", "symmetric").host, initial_peers=boot.maddrs)
        assert other.ask("until_direct", f"{there}/p2p/{node.peer_id}", 8.0)[1] is not None
        assert other.ask("call", node.peer_id) == "direct"
        health = node.ask("health")
        assert (health["grade"], health["steps"]) == ("good", [])
        assert health["verdict"] == f"Others reach this node directly at {there}, which the router forwards."
        assert health["nat"]["kind"] == "symmetric"
        node.stop()
        assert "5005" not in forwarded(site), "it was not given back"


def test_the_first_of_a_swarm_has_its_port_forwarded_too(lab: Lab, start: Callable[..., Peer], monkeypatch):
    monkeypatch.setenv("HIVEMIND_P2P_NAT__PORT_MAPPING", "true")
    site = lab.site("b", "port-restricted")
    command = [sys.executable, "-m", "hivemind_p2p", "bootstrap", "--host-maddrs", "/ip4/0.0.0.0/tcp/5005"]
    with (
        forwarding(site, natpmp=True, upnp=False),
        site.host.popen(command, stdout=subprocess.PIPE, text=True) as process,
    ):
        too_late = threading.Timer(60, process.kill)
        too_late.start()
        try:
            lines = iter(process.stdout.readline, "")
            assert any(line == "It is also reached at\n" for line in lines)
            address = next(lines).strip()
            assert address.startswith(f"/ip4/{site.public_ip}/tcp/5005/p2p/")
            joining = start(lab.public("other"), initial_peers=[address])
            assert joining.ask("paths", address.rpartition("/")[2]) == ["direct"]
            process.terminate()
            assert process.wait() == 0
            assert "5005" not in forwarded(site)
        finally:
            too_late.cancel()
            process.kill()


def test_a_router_behind_another_nat_is_no_help(lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]):
    boot = bootstrap()
    site = lab.site("b", "cgnat")
    with forwarding(site, natpmp=True, upnp=False):
        node = start(site.host, initial_peers=boot.maddrs, settings=MAPPING)
        state = node.ask("until_router_answered", 40)
        assert "NAT-PMP" in state or "refuses" in state
        assert node.ask("relays") == [boot.peer_id]
        assert all("p2p-circuit" in maddr or "/192.168." in maddr for maddr in node.ask("visible"))


def test_a_router_that_forwards_nothing_is_no_harm(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]
):
    boot = bootstrap()
    node = start(lab.site("b", "port-restricted").host, initial_peers=boot.maddrs, settings=MAPPING)
    state = node.ask("until_router_answered", 40)
    assert "does not speak NAT-PMP" in state
    assert "No UPnP device discovered" in state
    assert node.ask("health")["port_mapping"] == state
