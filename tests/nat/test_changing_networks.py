"""The network changes under a node: carried into another one, given another address, and it is reached there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.nat.lab.igd import forwarding
from tests.nat.lab.lab import Lab
from tests.nat.lab.peers import Peer

PATIENCE = 50.0
"""Seconds for a call to get through again; on idle cores it takes about three."""


def circuit_of(peer: Peer) -> str:
    return next(maddr for maddr in peer.ask("visible") if "p2p-circuit" in maddr)


def test_a_node_that_is_carried_behind_another_nat_is_reached_there(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]
):
    boot = bootstrap()
    home, cafe = lab.site("home", "port-restricted"), lab.site("cafe", "port-restricted", hosts=0)
    client = start(lab.site("b", "port-restricted").host, initial_peers=boot.maddrs)
    moving = start(home.host, initial_peers=boot.maddrs)
    assert client.ask("until_direct", circuit_of(moving), 20.0)[1] is not None
    for peer, other in ((client, moving), (moving, client)):
        peer.tell("hold", other.peer_id)
    lab.move(home.host, cafe)
    assert "this machine's network changed: it has no address 192.168.1.100 any more" in moving.answer()
    assert client.answer().startswith(f"ConnectionLost: the direct connection to {moving.peer_id} is gone")
    assert client.ask("call_until", moving.peer_id, "direct", PATIENCE) < PATIENCE
    assert moving.ask("call_until", client.peer_id, "direct", PATIENCE) < PATIENCE
    assert moving.ask("relays") == [boot.peer_id]
    stranger = start(lab.public("c"), initial_peers=boot.maddrs)
    stranger.ask("connect", f"/p2p/{moving.peer_id}")
    visible = moving.ask("visible")
    assert any("p2p-circuit" in maddr for maddr in visible)
    assert not any("192.168.1." in maddr or home.public_ip in maddr for maddr in visible)


def test_two_networks_that_look_the_same_are_told_apart(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]
):
    boot = bootstrap()
    home, cafe = lab.site("home", "port-restricted", lan=77), lab.site("cafe", "symmetric", lan=77, hosts=0)
    client = start(lab.site("b", "port-restricted").host, initial_peers=boot.maddrs)
    moving = start(home.host, initial_peers=boot.maddrs)
    assert client.ask("until_direct", circuit_of(moving), 20.0)[1] is not None
    before = home.host.ip
    lab.move(home.host, cafe)
    assert home.host.ip == before
    assert moving.ask("until_moved", 20.0) == 1
    assert client.ask("call_until", moving.peer_id, "relayed", PATIENCE) < PATIENCE


def test_a_router_that_gets_another_public_address_is_noticed(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]
):
    boot = bootstrap()
    home = lab.site("home", "port-restricted")
    client = start(lab.site("b", "port-restricted").host, initial_peers=boot.maddrs)
    staying = start(home.host, initial_peers=boot.maddrs)
    assert client.ask("until_direct", circuit_of(staying), 20.0)[1] is not None
    lab.renumber(home)
    assert staying.ask("until_moved", PATIENCE) == 1
    assert client.ask("call_until", staying.peer_id, "direct", PATIENCE) < PATIENCE


@pytest.mark.skipif(shutil.which("miniupnpd") is None, reason="needs miniupnpd (apt-get install miniupnpd-nftables)")
def test_the_port_is_forwarded_by_the_new_router(lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]):
    boot = bootstrap()
    home, cafe = lab.site("home", "port-restricted"), lab.site("cafe", "symmetric", hosts=0)
    with forwarding(home, natpmp=True, upnp=False), forwarding(cafe, natpmp=True, upnp=False):
        settings = {"nat.port_mapping": True}
        node = start(home.host, initial_peers=boot.maddrs, settings=settings, host_maddrs=["/ip4/0.0.0.0/tcp/5005"])
        assert node.ask("until_mapped", 40)[1] == [f"/ip4/{home.public_ip}/tcp/5005"]
        lab.move(home.host, cafe)
        assert node.ask("until_moved", 20.0) == 1
        assert node.ask("until_mapped", 40)[1] == [f"/ip4/{cafe.public_ip}/tcp/5005"]
        assert node.ask("visible")[0] == f"/ip4/{cafe.public_ip}/tcp/5005/p2p/{node.peer_id}"


def test_an_expert_that_is_carried_into_another_network_computes_there(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]
):
    boot = bootstrap()
    home, cafe = lab.site("home", "port-restricted"), lab.site("cafe", "restricted", hosts=0)
    client = start(lab.site("b", "port-restricted").host, initial_peers=boot.maddrs)
    command = [sys.executable, "-m", "hivemind_p2p", "server", "--initial-peers", *boot.maddrs, "--json"]
    command += ["--expert-uids", "nop.0", "--expert-cls", "nop", "--hidden-dim", "8", "--optimizer", "none"]
    with home.host.popen(command, stdout=subprocess.PIPE, text=True) as server:
        too_late = threading.Timer(120, server.kill)
        too_late.start()
        try:
            assert server.stdout is not None
            assert json.loads(server.stdout.readline())["peer_id"]
            client.ask("forward", "nop.0", PATIENCE)
            lab.move(home.host, cafe)
            client.ask("forward", "nop.0", PATIENCE)
            server.terminate()
            assert server.wait() == 0
        finally:
            too_late.cancel()
            server.kill()
