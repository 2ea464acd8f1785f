"""The address book, without a clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from hivemind_p2p.transport.address_book import AddressBook
from hivemind_p2p.transport.identity import Identity

ONE, TWO = Identity.generate().peer_id, Identity.generate().peer_id
PEERS = [Identity.generate().peer_id for _ in range(6)]
V4 = [Multiaddr(f"/ip4/10.0.0.{number}/tcp/4001") for number in range(1, 7)]
V6 = [Multiaddr(f"/ip6/fd00::{number}/tcp/4001") for number in range(1, 7)]


def book(**limits) -> AddressBook:
    return AddressBook(**{"max_peers": 4, "max_per_peer": 5, "backoff": 0.5, "backoff_max": 4.0} | limits)


def test_families_take_turns_and_proven_addresses_come_first():
    known = book()
    known.add(ONE, [V4[0], V4[1], V6[0], V6[1]])
    assert known.addresses(ONE) == [V4[0], V6[0], V4[1], V6[1]]
    known.succeeded(ONE, V6[1])
    known.succeeded(ONE, V4[1])
    assert known.addresses(ONE) == [V4[1], V6[1], V4[0], V6[0]]


def test_an_address_that_fails_is_left_alone_twice_as_long_each_time():
    known = book()
    known.add(ONE, V4[:2])
    for rest in (0.5, 1.0, 2.0, 4.0, 4.0):
        known.failed(ONE, V4[0], "connection refused", now=100.0)
        assert known.candidates(ONE, 100.0) == [V4[1]]
        assert known.resting(ONE, 100.0) == [(V4[0], rest, "connection refused")]
        assert V4[0] in known.candidates(ONE, 100.0 + rest)


def test_a_success_clears_the_backoff_of_every_address():
    known = book()
    known.add(ONE, V4[:2])
    known.failed(ONE, V4[0], "", now=0.0)
    known.failed(ONE, V4[0], "", now=0.0)
    known.succeeded(ONE, V4[1])
    assert known.candidates(ONE, 0.0) == [V4[1], V4[0]]
    known.failed(ONE, V4[0], "", now=0.0)
    assert known.resting(ONE, 0.0)[0][1] == 0.5


def test_an_address_of_somebody_else_is_forgotten():
    known = book()
    known.add(ONE, V4[:1])
    known.forget(ONE, V4[0])
    assert known.addresses(ONE) == []
    assert len(known) == 0


def test_addresses_that_nobody_can_dial_are_not_kept():
    known = book()
    known.add(
        ONE, [Multiaddr("/ip4/0.0.0.0/tcp/4001"), Multiaddr("/ip4/10.0.0.1/tcp/0"), Multiaddr("/ip4/224.0.0.1/tcp/1")]
    )
    assert len(known) == 0


def test_a_flood_of_hints_does_not_push_out_what_is_proven():
    known = book()
    known.succeeded(ONE, V4[0])
    known.add(ONE, [Multiaddr(f"/ip4/10.1.0.{number}/tcp/1") for number in range(1, 200)])
    assert len(known.addresses(ONE)) == 5
    assert known.addresses(ONE)[0] == V4[0]


actions = st.tuples(
    st.sampled_from(["add", "succeeded", "failed", "forget"]), st.sampled_from(PEERS), st.sampled_from(V4 + V6)
)


@given(st.lists(actions, max_size=80))
def test_the_book_stays_in_bounds_and_says_each_address_once(steps):
    known = book()
    for now, (action, peer, maddr) in enumerate(steps):
        match action:
            case "add":
                known.add(peer, [maddr])
            case "succeeded":
                known.succeeded(peer, maddr)
                assert known.addresses(peer)[0] == maddr
                assert maddr in known.candidates(peer, now)
            case "failed":
                known.failed(peer, maddr, "why", now)
                assert maddr not in known.candidates(peer, now)
            case "forget":
                known.forget(peer, maddr)
                assert maddr not in known.addresses(peer)
        assert len(known) <= 4
        for each in PEERS:
            addresses = known.addresses(each)
            assert len(addresses) <= 5
            assert len(set(addresses)) == len(addresses)
            resting = [entry[0] for entry in known.resting(each, now)]
            assert sorted(map(str, known.candidates(each, now) + resting)) == sorted(map(str, addresses))
