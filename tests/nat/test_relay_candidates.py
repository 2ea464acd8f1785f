"""Which relay is asked next."""

from __future__ import annotations

from hivemind_p2p.nat.relay_candidates import RelayCandidates
from hivemind_p2p.wire.peer_id import PeerID


def peer(number: int) -> PeerID:
    return PeerID(b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big"))


def candidates() -> RelayCandidates:
    return RelayCandidates(retry=1.0, retry_max=4.0)


def test_those_that_were_given_come_before_those_that_were_met():
    relays = candidates()
    assert relays.add(peer(1), given=False)
    assert relays.add(peer(2), given=True)
    assert not relays.add(peer(2), given=True)
    assert relays.next(0, ()) == peer(2)
    assert relays.next(0, {peer(2)}) == peer(1)
    assert relays.next(0, {peer(1), peer(2)}) is None


def test_one_that_failed_is_left_alone_twice_as_long_each_time_up_to_a_limit():
    relays = candidates()
    relays.add(peer(1), given=True)
    now = 0.0
    for rest in (1, 2, 4, 4):
        relays.failed(peer(1), now)
        assert relays.next(now + rest - 0.1, ()) is None
        assert relays.next_time(()) == now + rest
        now += rest
        assert relays.next(now, ()) == peer(1)
    relays.succeeded(peer(1))
    relays.failed(peer(1), now)
    assert relays.next_time(()) == now + 1


def test_one_that_failed_comes_after_those_that_did_not():
    relays = candidates()
    relays.add(peer(1), given=True)
    relays.add(peer(2), given=False)
    relays.failed(peer(1), 0)
    assert relays.next(10, ()) == peer(2)


def test_of_those_that_were_met_only_the_latest_are_remembered():
    relays = candidates()
    relays.add(peer(0), given=True)
    for number in range(1, 100):
        relays.add(peer(number), given=False)
    assert repr(relays) == "<RelayCandidates: 33 peers>"
    assert relays.next(0, ()) == peer(0)
    assert relays.next(0, {peer(0)}) == peer(68)
