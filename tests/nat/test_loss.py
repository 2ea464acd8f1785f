"""Links that lose one packet in twenty: it takes longer, and ends the same way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.nat.lab.lab import Lab
from tests.nat.lab.peers import Peer


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(delay_ms=5, loss=0.05)


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        ("port-restricted", "port-restricted", "direct"),
        ("firewalled", "cgnat", "direct"),
        ("symmetric", "restricted", "direct"),
        ("symmetric", "symmetric", "relayed"),
    ],
)
def test_nodes_behind_nats_reach_each_other_over_links_that_lose_packets(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer], one: str, other: str, path: str
):
    boot = bootstrap()
    dialling, accepting = (
        start(lab.site(name, kind).host, initial_peers=boot.maddrs) for name, kind in (("a", one), ("b", other))
    )
    dialling.ask("connect", accepting.address)
    assert dialling.ask("call_until", accepting.peer_id, path, 50.0) < 50
    assert dialling.ask("call", accepting.peer_id, 10**6).startswith(path)
