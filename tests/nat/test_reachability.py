"""What is known about our addresses."""

from __future__ import annotations

from multiaddr import Multiaddr

from hivemind_p2p.nat.reachability import Reachability, Verdict
from hivemind_p2p.wire.peer_id import PeerID

HERE, THERE = Multiaddr("/ip4/44.1.1.1/tcp/4001"), Multiaddr("/ip4/44.1.1.2/tcp/4001")


def peer(number: int) -> PeerID:
    return PeerID(b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big"))


def test_nothing_is_known_of_an_address_that_nobody_tried():
    assert Reachability(max_age=100).verdict(HERE, now=0) is Verdict.UNKNOWN


def test_each_address_has_a_verdict_of_its_own_with_its_evidence():
    known = Reachability(max_age=100)
    known.add(HERE, peer(1), True, now=1)
    known.add(THERE, peer(1), False, now=2)
    assert known.verdict(HERE, now=3) is Verdict.REACHABLE
    assert known.verdict(THERE, now=3) is Verdict.UNREACHABLE
    [evidence] = known.evidence(THERE, now=3)
    assert (evidence.observer, evidence.reached, evidence.at) == (peer(1), False, 2)
    assert known.maddrs(now=3) == [HERE, THERE]


def test_a_peer_has_one_say_its_latest_and_what_is_old_counts_no_more():
    known = Reachability(max_age=100)
    known.add(HERE, peer(1), True, now=0)
    known.add(HERE, peer(1), False, now=50)
    assert known.verdict(HERE, now=60) is Verdict.UNREACHABLE
    assert known.verdict(HERE, now=151) is Verdict.UNKNOWN


def test_one_success_counts_unless_more_failed():
    known = Reachability(max_age=100)
    known.add(HERE, peer(1), True, now=0)
    known.add(HERE, peer(2), False, now=0)
    assert known.verdict(HERE, now=1) is Verdict.REACHABLE
    known.add(HERE, peer(3), False, now=0)
    assert known.verdict(HERE, now=1) is Verdict.UNREACHABLE


def test_it_is_bounded_and_can_be_forgotten():
    known = Reachability(max_age=100)
    for number in range(100):
        known.add(HERE, peer(number), True, now=0)
        known.add(Multiaddr(f"/ip4/44.2.2.{number}/tcp/1"), peer(1), True, now=0)
    assert repr(known) == "<Reachability of 16 addresses>"
    known.add(HERE, peer(1), True, now=0)
    assert len(known.evidence(HERE, now=0)) <= 16
    known.forget()
    assert known.maddrs(now=0) == []
