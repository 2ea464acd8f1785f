"""Two homes behind one carrier, each with a NAT of its own: one public address, and private ones that lead nowhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.nat.lab.lab import Lab
from tests.nat.lab.peers import Peer


def circuit_of(peer: Peer) -> str:
    return next(maddr for maddr in peer.ask("visible") if "p2p-circuit" in maddr)


@pytest.mark.parametrize(
    ("carrier", "direct"),
    [("hairpin", True), ("port-restricted", False), ("symmetric", False)],
)
def test_two_homes_of_one_carrier_reach_each_other(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer], carrier: str, direct: bool
):
    boot = bootstrap()
    provider = lab.carrier("carrier", carrier)
    settings = {} if direct else {"nat.punch_window": 1.0, "nat.punch_rounds": 2}
    one, other = (
        start(lab.home(name, provider, lan=50).host, initial_peers=boot.maddrs, dht=False, settings=settings)
        for name in ("one", "other")
    )
    assert one.host.ip == other.host.ip, "as it is in many homes"
    _, after = one.ask("until_direct", circuit_of(other), 30.0 if direct else 3.0)
    assert (after is not None) is direct
    assert one.ask("call", other.peer_id) == ("direct" if direct else f"relayed by {boot.peer_id}")
    assert other.ask("call", one.peer_id) == one.ask("call", other.peer_id)
