from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.dht.blacklist import Blacklist
from hivemind_p2p.wire.peer_id import PeerID

PEER = PeerID(b"\x00\x01a")


def test_the_ban_doubles_with_each_failure_in_a_row():
    blacklist, now = Blacklist(5.0, 2.0), 100.0
    for ban in (5.0, 10.0, 20.0):
        blacklist.failed(PEER, now)
        blacklist.failed(PEER, now + 1)  # sent before the first one failed
        assert blacklist.passes_over(PEER, now + ban - 0.1)
        now += ban
        assert not blacklist.passes_over(PEER, now)
    blacklist.answered(PEER)
    blacklist.failed(PEER, now)
    assert not blacklist.passes_over(PEER, now + 5)


@given(st.integers(1, 300))
def test_a_ban_never_exceeds_an_hour(failures: int):
    blacklist, now = Blacklist(5.0, 2.0), 0.0
    for _ in range(failures):
        blacklist.failed(PEER, now)
        now += 3600.0
    assert not blacklist.passes_over(PEER, now)


def test_it_can_be_turned_off_and_is_bounded():
    off = Blacklist(0.0, 2.0)
    off.failed(PEER, 0.0)
    assert not off.passes_over(PEER, 0.0)
    small = Blacklist(5.0, 2.0, max_peers=2)
    for n in range(5):
        small.failed(PeerID(b"\x00\x01" + bytes([n])), 0.0)
    assert repr(small) == "<Blacklist of 2 peers>"
