"""What a relay promises: reservations that end, and circuits that are counted, whatever happens in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.config import RelaySettings
from hivemind_p2p.nat.relay_book import RelayBook
from hivemind_p2p.wire.circuit_pb2 import NO_RESERVATION, OK, RESERVATION_REFUSED, RESOURCE_LIMIT_EXCEEDED
from hivemind_p2p.wire.peer_id import PeerID

A, B, C, D = (PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes([number]) * 32) for number in range(4))
SMALL = RelaySettings(
    max_reservations=3, max_reservations_per_ip=2, reservation_time=100, max_circuits=3, max_circuits_per_peer=2
)


def test_a_reservation_holds_for_its_time_and_can_be_renewed():
    book = RelayBook(SMALL)
    assert book.reserve(A, "connection", "1.1.1.1", now=0) == OK
    assert book.connection_of(A, 99) == "connection"
    assert book.reserve(A, "connection", "1.1.1.1", now=99) == OK
    assert book.connection_of(A, 198) == "connection"
    assert book.connection_of(A, 199) is None
    assert book.reservations == 0


def test_a_reservation_ends_with_its_connection_and_moves_to_a_new_one():
    book = RelayBook(SMALL)
    book.reserve(A, "old", "1.1.1.1", now=0)
    book.reserve(A, "new", "1.1.1.1", now=1)
    book.lost("old")
    assert book.connection_of(A, 2) == "new"
    book.lost("new")
    assert book.connection_of(A, 2) is None


def test_no_more_reservations_than_there_is_room_for_in_all_and_from_one_address():
    book = RelayBook(SMALL)
    assert book.reserve(A, 1, "1.1.1.1", now=0) == OK
    assert book.reserve(B, 2, "1.1.1.1", now=0) == OK
    assert book.reserve(C, 3, "1.1.1.1", now=0) == RESERVATION_REFUSED
    assert book.reserve(C, 3, "2.2.2.2", now=0) == OK
    assert book.reserve(D, 4, "3.3.3.3", now=0) == RESERVATION_REFUSED
    assert book.reserve(A, 1, "1.1.1.1", now=0) == OK, "one that is there is renewed even when all is full"
    assert book.reserve(D, 4, "3.3.3.3", now=100) == OK, "the others have ended"


def test_circuits_need_a_reservation_at_their_end_and_are_limited():
    book = RelayBook(SMALL)
    assert book.open(A, B, now=0) == NO_RESERVATION
    book.reserve(B, 1, "1.1.1.1", now=0)
    book.reserve(C, 2, "2.2.2.2", now=0)
    assert book.open(A, B, now=0) == OK
    assert book.open(A, B, now=0) == OK
    assert book.open(D, B, now=0) == RESOURCE_LIMIT_EXCEEDED, "two end at B"
    assert book.open(A, C, now=0) == RESOURCE_LIMIT_EXCEEDED, "two begin at A"
    assert book.open(D, C, now=0) == OK
    assert book.open(D, C, now=0) == RESOURCE_LIMIT_EXCEEDED, "three in all"
    book.close(A, B)
    assert book.open(D, C, now=0) == OK
    assert "2 reservations, 3 circuits" in repr(book)


@given(st.lists(st.tuples(st.sampled_from([A, B, C, D]), st.sampled_from([A, B, C, D]), st.booleans()), max_size=60))
def test_what_is_counted_in_and_out_adds_up(steps: list[tuple[PeerID, PeerID, bool]]):
    book = RelayBook(SMALL)
    for number, peer in enumerate((A, B, C)):
        book.reserve(peer, number, str(number), now=0)
    opened: list[tuple[PeerID, PeerID]] = []
    for source, target, closing in steps:
        if closing and opened:
            book.close(*opened.pop())
        elif book.open(source, target, now=0) == OK:
            opened.append((source, target))
        assert book.circuits == len(opened) <= SMALL.max_circuits
        for peer in (A, B, C, D):
            assert sum(pair.count(peer) for pair in opened) <= SMALL.max_circuits_per_peer + (
                sum(pair == (peer, peer) for pair in opened)
            )
