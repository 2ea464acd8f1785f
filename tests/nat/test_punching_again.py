"""Connections that ended well come up again at once, from the same ports: what TCP remembers is in nobody's way."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from tests.nat.lab.lab import Lab
from tests.nat.lab.namespaces import Host
from tests.nat.lab.peers import Peer


def in_time_wait(host: Host) -> bool:
    return b"TIME-WAIT" in host.run(["ss", "-tan"], capture_output=True).stdout


def test_a_pair_of_addresses_in_time_wait_can_be_dialled_from_the_shared_port(lab: Lab):
    """Linux allows it where the port was chosen (``bind``) and packets carry timestamps, which is the default."""
    ours, theirs = lab.site("a", "port-restricted").host, lab.public("b")
    with theirs.socket(socket.SOCK_STREAM, 7777, timeout=10) as listener:
        listener.listen(8)
        for _ in range(3):
            with ours.socket(socket.SOCK_STREAM, 5005, timeout=10) as dialling:
                dialling.connect((theirs.ip, 7777))
                accepted, _address = listener.accept()
            accepted.close()
            until = time.monotonic() + 10
            while not in_time_wait(ours) and time.monotonic() < until:
                pass
            assert in_time_wait(ours)


@pytest.mark.parametrize("who", ["leader", "follower"])
@pytest.mark.parametrize(("one", "other"), [("port-restricted", "port-restricted"), ("cgnat", "firewalled")])
def test_a_direct_connection_that_was_closed_is_there_again_within_seconds(
    lab: Lab, start: Callable[..., Peer], bootstrap: Callable[..., Peer], one: str, other: str, who: str
):
    boot = bootstrap()
    follower, leader = (
        start(lab.site(*site).host, initial_peers=boot.maddrs, dht=False) for site in (("a", one), ("b", other))
    )
    assert follower.ask("until_direct", leader.address, 20.0)[1] is not None
    closes, stays = (leader, follower) if who == "leader" else (follower, leader)
    for _ in range(3):
        closes.ask("close", stays.peer_id)
        assert follower.ask("call_until", leader.peer_id, "direct", 30.0) < 30
