"""Nodes behind NATs in the laboratory: what the matrix does not hold, and what happens when things break."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.nat.lab.lab import Lab
from tests.nat.lab.peers import Peer


def circuit_of(peer: Peer) -> str:
    return next(maddr for maddr in peer.ask("visible") if "p2p-circuit" in maddr)


def test_everything_leaves_from_the_port_that_is_listened_on(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]
):
    boot = bootstrap()
    site = lab.site("a", "port-restricted")
    node = start(site.host, initial_peers=boot.maddrs, host_maddrs=["/ip4/0.0.0.0/tcp/5005"])
    assert boot.ask("sources", node.peer_id) == [f"/ip4/{site.public_ip}/tcp/5005"]
    assert any("/tcp/5005/" in maddr and site.host.ip in maddr for maddr in node.maddrs)


def test_a_client_that_listens_on_nothing_is_connected_directly_too(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]
):
    boot = bootstrap()
    server = start(lab.site("b", "port-restricted").host, initial_peers=boot.maddrs)
    client = start(lab.site("a", "port-restricted").host, initial_peers=boot.maddrs, client_mode=True)
    _, direct = client.ask("until_direct", circuit_of(server), 8.0)
    assert direct is not None
    assert client.ask("call", server.peer_id) == "direct"


@pytest.mark.parametrize("kind", ["port-restricted", "hairpin"])
def test_two_hosts_behind_one_nat_are_connected_directly(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer], kind: str
):
    boot = bootstrap()
    site = lab.site("two", kind, hosts=2)
    one, other = (start(host, initial_peers=boot.maddrs, dht=False) for host in site.hosts)
    _, direct = one.ask("until_direct", circuit_of(other), 8.0)
    assert direct is not None
    assert one.ask("call", other.peer_id) == "direct"


@pytest.mark.parametrize("other", ["reject", "port-restricted"])
def test_nats_that_refuse_are_punched_through(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer], other: str
):
    boot = bootstrap()
    one = start(lab.site("a", "reject").host, initial_peers=boot.maddrs, dht=False)
    two = start(lab.site("b", other).host, initial_peers=boot.maddrs, dht=False)
    assert one.ask("until_direct", circuit_of(two), 8.0)[1] is not None
    assert two.ask("call_until", one.peer_id, "direct", 10.0) < 10


def test_a_direct_connection_outlives_the_relay(lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]):
    boot = bootstrap()
    one, two = (
        start(lab.site(name, "port-restricted").host, initial_peers=boot.maddrs, dht=False) for name in ("a", "b")
    )
    assert one.ask("until_direct", circuit_of(two), 8.0)[1] is not None
    boot.kill()
    for _ in range(3):
        assert one.ask("call", two.peer_id) == "direct"


def test_when_a_relay_dies_another_one_carries_on_within_seconds(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]
):
    first = bootstrap("boot1")
    second = bootstrap("boot2", initial_peers=first.maddrs, settings={"relay.serve": "always"})
    known = [*first.maddrs, *second.maddrs]
    one = start(lab.site("a", "symmetric").host, initial_peers=known)
    two = start(lab.site("b", "symmetric").host, initial_peers=known)
    one.ask("connect", circuit_of(two))
    used = one.ask("call", two.peer_id)
    assert used.startswith("relayed by ")
    (first if used.endswith(first.peer_id) else second).kill()
    other = second if used.endswith(first.peer_id) else first
    assert one.ask("call_until", two.peer_id, f"relayed by {other.peer_id}", 10.0) < 10


def test_when_a_nat_forgets_everything_calls_get_through_again(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer]
):
    boot = bootstrap()
    site = lab.site("a", "port-restricted")
    one = start(site.host, initial_peers=boot.maddrs)
    two = start(lab.site("b", "port-restricted").host, initial_peers=boot.maddrs)
    assert one.ask("until_direct", circuit_of(two), 8.0)[1] is not None
    lab.flush_mappings(site)
    assert one.ask("call_until", two.peer_id, "", 30.0) < 30


@pytest.mark.parametrize(
    ("kind", "reachable"),
    [("none", True), ("firewalled", False), ("full-cone", False), ("restricted", False), ("symmetric", False)],
)
def test_only_an_open_node_does_without_relays_and_is_one(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer], kind: str, reachable: bool
):
    boot = bootstrap()
    node = start(lab.site("a", kind).host, initial_peers=boot.maddrs, dht=False)
    assert node.ask("until_reachability_is_known", 8.0) == ([] if not reachable else node.ask("listening"))
    assert node.ask("relays") == ([] if reachable else [boot.peer_id])
    assert node.ask("serves") is reachable
