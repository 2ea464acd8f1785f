"""What others see of us."""

from __future__ import annotations

from multiaddr import Multiaddr

from hivemind_p2p.nat.observed import ObservedAddresses
from hivemind_p2p.wire.peer_id import PeerID

HERE, THERE = Multiaddr("/ip4/44.1.1.1/tcp/4001"), Multiaddr("/ip4/44.1.1.2/tcp/50000")


def peer(number: int) -> PeerID:
    return PeerID(b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big"))


def test_one_observer_is_believed_and_more_count_more():
    observed = ObservedAddresses()
    assert observed.add(peer(1), THERE, now=0)
    assert observed.maddrs(now=1) == [THERE]
    assert observed.add(peer(2), HERE, now=2)
    assert not observed.add(peer(3), HERE, now=3)
    assert observed.maddrs(now=4) == [HERE, THERE]
    assert observed.ips(now=4) == {"44.1.1.1", "44.1.1.2"}


def test_an_observer_has_one_say_and_what_is_old_is_forgotten():
    observed = ObservedAddresses()
    observed.add(peer(1), THERE, now=0)
    observed.add(peer(1), HERE, now=10)
    assert observed.maddrs(now=20) == [HERE]
    assert observed.maddrs(now=3700) == []


def test_only_ip_addresses_count_and_observers_are_limited():
    observed = ObservedAddresses()
    assert not observed.add(peer(1), Multiaddr("/dns4/example.com/tcp/1"), now=0)
    for number in range(1000):
        observed.add(peer(number), HERE, now=0)
    assert repr(observed) == "<ObservedAddresses of 64 observers>"
