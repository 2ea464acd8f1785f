"""What is offered for a hole punch, and what is dialled: never what somebody else could be hurt by."""

from __future__ import annotations

import pytest
from multiaddr import Multiaddr

from hivemind_p2p.nat.punch_targets import MOST, choose, offer

RELAY = "12D3KooWH4wn2xbi2UUPjfru8PnHWu2AHnGNCWBH5CFX9rRY5F3K"


def maddrs(*texts: str) -> list[Multiaddr]:
    return [Multiaddr(text if "/" in text else "/ip4/{}/tcp/{}".format(*text.split(":"))) for text in texts]


def test_offered_is_where_we_are_seen_also_with_the_port_that_we_listen_on():
    offered = offer(maddrs("192.168.1.7:4001"), maddrs("44.1.1.1:50000"))
    assert offered == maddrs("44.1.1.1:50000", "44.1.1.1:4001", "192.168.1.7:4001")


def test_offered_is_a_public_address_that_we_listen_on_before_all_others():
    assert offer(maddrs("44.1.1.1:4001"), maddrs("44.1.1.1:50000"))[0] == maddrs("44.1.1.1:4001")[0]


def test_nothing_is_offered_that_leads_nowhere_and_not_too_much():
    listening = maddrs("127.0.0.1:4001", f"/ip4/44.9.9.9/tcp/1/p2p/{RELAY}/p2p-circuit")
    assert offer(listening, ()) == []
    assert len(offer((), maddrs(*(f"44.1.1.{last}:1" for last in range(100))))) == MOST


def test_public_addresses_are_dialled():
    assert choose(maddrs("44.2.2.2:1", "44.2.2.2:2"), ours=maddrs("44.1.1.1:1")) == maddrs("44.2.2.2:1", "44.2.2.2:2")


def test_private_addresses_are_dialled_only_of_who_is_seen_where_we_are_seen():
    offered = maddrs("44.1.1.1:9", "192.168.1.9:9")
    assert choose(offered, ours=maddrs("44.1.1.1:1", "192.168.1.7:1")) == maddrs("192.168.1.9:9", "44.1.1.1:9")
    assert choose(offered, ours=maddrs("44.3.3.3:1", "192.168.1.7:1")) == maddrs("44.1.1.1:9")
    assert choose(maddrs("192.168.1.7:9", "10.0.0.1:22"), ours=maddrs("192.168.1.7:1")) == [], "no public IP in common"


@pytest.mark.parametrize(
    "hostile",
    [
        "127.0.0.1:22",
        "0.0.0.0:22",
        "169.254.169.254:80",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "240.0.0.1:1",
        "44.2.2.2:0",
        "/ip6/::1/tcp/22",
        "/ip6/fe80::1/tcp/22",
        "/dns4/example.com/tcp/80",
        f"/ip4/44.2.2.2/tcp/1/p2p/{RELAY}/p2p-circuit",
    ],
)
def test_hostile_addresses_are_not_dialled(hostile: str):
    assert choose(maddrs(hostile), ours=maddrs("44.1.1.1:1")) == []


def test_our_own_addresses_are_not_dialled_and_a_flood_is_cut():
    assert choose(maddrs("44.1.1.1:1"), ours=maddrs("44.1.1.1:1")) == []
    assert len(choose(maddrs(*(f"44.2.2.{last}:1" for last in range(100))), ours=())) == MOST
