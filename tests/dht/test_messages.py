"""Golden bytes are what hivemind 1.1.12 wrote for the same records."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import messages
from hivemind_p2p.dht.messages import Found, StoreItem
from hivemind_p2p.errors import ProtocolViolation
from hivemind_p2p.kademlia import SHA1, Contact, DictionaryValue, ValueWithExpiration, Verdict
from hivemind_p2p.wire import dht_pb2
from hivemind_p2p.wire.peer_id import PeerID

SETTINGS = DHTSettings()
PEERS = [PeerID(b"\x00\x01" + bytes([n])) for n in range(50)]
CONTACTS = [Contact(SHA1.hash(peer.to_bytes()), peer) for peer in PEERS]


HIVEMIND_DICTIONARY = bytes.fromhex(
    "c7325093cb7ff0000000000000cb41e65a0bc00000009293a161c40101cb41ddcd650000000093a162c40102cb41e65a0bc0000000"
)


def dictionary_of(**entries: tuple[bytes, float]) -> DictionaryValue:
    dictionary = DictionaryValue()
    for subkey, (value, expiration) in entries.items():
        dictionary.store(messages.msgpack.dumps(subkey), value, expiration, now=0.0)
    return dictionary


def answer_of(results: list[dht_pb2.FindResult], **fields) -> dht_pb2.FindResponse:
    return dht_pb2.FindResponse(results=results, peer=messages.node_info(1), **fields)


def test_a_dictionary_travels_as_hivemind_writes_it():
    packed = messages.pack_dictionary(dictionary_of(a=(b"\x01", 2e9), b=(b"\x02", 3e9)), now=0.0)
    assert packed == HIVEMIND_DICTIONARY
    unpacked = messages.unpack_dictionary(HIVEMIND_DICTIONARY, SETTINGS, 2.5e9)
    assert dict(unpacked.items(0.0)) == {b"\xa1b": (b"\x02", 3e9)}  # "a" had expired


@pytest.mark.parametrize("raw", [b"", b"\xc0", b"\xc7\x01\x50\xc0", b"\xff" * 10, b"\x93\xc0\xc0\xc0"])
def test_what_is_no_dictionary_is_refused(raw: bytes):
    with pytest.raises(ValueError):  # noqa: PT011 what it says is msgpack's business
        messages.unpack_dictionary(raw, SETTINGS, 0.0)


def test_a_dictionary_above_our_bounds_is_refused():
    packed = messages.pack_dictionary(dictionary_of(a=(b"\x01", 2e9), b=(b"\x02", 3e9)), now=0.0)
    with pytest.raises(ValueError, match="2 subkeys"):
        messages.unpack_dictionary(packed, DHTSettings(max_subkeys=1), 0.0)


items = st.builds(
    StoreItem,
    st.integers(0, SHA1.size - 1),
    st.binary(max_size=5),
    st.binary(max_size=20),
    st.floats(allow_nan=False),
    st.booleans(),
)


@given(st.lists(items))
def test_items_to_store_travel(items: list[StoreItem]):
    request = messages.store_request(items, messages.node_info(5))
    request = dht_pb2.StoreRequest.FromString(request.SerializeToString())
    assert messages.store_items(request) == items
    assert messages.node_id_in(request.peer) == 5


def test_a_store_request_must_be_aligned():
    request = messages.store_request([StoreItem(1, b"\xc0", b"v", 1.0)], messages.node_info(None))
    request.values.append(b"another")
    with pytest.raises(ProtocolViolation, match=r"one subkey, value, time and flag per key, not \[1, 1, 2, 1, 1\]"):
        messages.store_items(request)


def test_ids_must_be_ids():
    with pytest.raises(ProtocolViolation, match="20 bytes, not 3"):
        messages.requested_keys(dht_pb2.FindRequest(keys=[b"abc"]), 10)
    with pytest.raises(ProtocolViolation, match="20 bytes, not 3"):
        messages.node_id_in(dht_pb2.NodeInfo(node_id=b"abc"))
    with pytest.raises(ProtocolViolation, match="3 keys is above the limit of 2"):
        messages.requested_keys(dht_pb2.FindRequest(keys=[bytes(20)] * 3), 2)
    assert messages.node_id_in(dht_pb2.NodeInfo()) is None


def test_what_was_found_travels():
    regular = Found(ValueWithExpiration(b"value", 50.0), CONTACTS[:20])
    dictionary = Found(ValueWithExpiration(dictionary_of(a=(b"x", 60.0)), 60.0), CONTACTS[:1])
    nothing = Found(None, [])
    results = [messages.find_result(found, now=10.0, room=1000) for found in (regular, dictionary, nothing)]
    maddr = Multiaddr("/ip4/1.2.3.4/tcp/5")
    told = {PEERS[0]: [maddr], PEERS[1]: [], PEERS[30]: [maddr]}
    response = answer_of(results, nearest_peer_addresses=messages.peer_addresses(told))
    answer = messages.find_answer(response, [11, 12, 13], SETTINGS, 20.0)
    assert answer.node_id == 1
    assert answer.found[11] == regular
    assert answer.found[13] == nothing
    record = answer.found[12].record
    assert record is not None
    assert isinstance(record.value, DictionaryValue)
    assert dict(record.value.items(20.0)) == {b"\xa1a": (b"x", 60.0)}
    assert answer.addresses == {PEERS[0]: [maddr]}  # only of peers that are named


def test_hivemind_ignores_our_fields_and_we_do_without_them():
    result = dht_pb2.FindResult(nearest_node_ids=[SHA1.to_bytes(5)], nearest_peer_ids=[PEERS[0].to_bytes()])
    answer = messages.find_answer(answer_of([result]), [1], SETTINGS, 0.0)
    assert answer.found[1] == Found(None, [Contact(5, PEERS[0])])
    assert answer.addresses == {}


@pytest.mark.parametrize(
    "result",
    [
        dht_pb2.FindResult(type=dht_pb2.FOUND_REGULAR, value=b"v", expiration_time=5.0),
        dht_pb2.FindResult(type=dht_pb2.FOUND_REGULAR, value=b"v", expiration_time=math.nan),
        dht_pb2.FindResult(type=dht_pb2.FOUND_REGULAR, value=bytes(2**20 + 1), expiration_time=50.0),
        dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=b"garbage", expiration_time=50.0),
        dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=b"", expiration_time=50.0),
    ],
)
def test_expired_oversized_and_garbage_records_are_not_there(result: dht_pb2.FindResult):
    assert messages.find_answer(answer_of([result]), [1], SETTINGS, 10.0).found[1].record is None


def test_answers_must_fit_the_question():
    with pytest.raises(ProtocolViolation, match="asked for 2 keys, got 1 results"):
        messages.find_answer(answer_of([dht_pb2.FindResult()]), [1, 2], SETTINGS, 0.0)
    with pytest.raises(ProtocolViolation, match="names no node id"):
        messages.find_answer(dht_pb2.FindResponse(results=[dht_pb2.FindResult()]), [1], SETTINGS, 0.0)


def test_of_thousands_of_neighbours_a_bucketful_counts_and_garbage_does_not():
    named = dht_pb2.FindResult(
        nearest_node_ids=[SHA1.to_bytes(n) for n in range(5000)],
        nearest_peer_ids=[b"garbage", *(PEERS[1].to_bytes() for _ in range(4999))],
    )
    [found] = messages.find_answer(answer_of([named]), [1], SETTINGS, 0.0).found.values()
    assert list(found.nearest) == [Contact(n, PEERS[1]) for n in range(1, 20)]


def test_values_for_which_there_is_no_room_are_said_to_be_left_out():
    found = Found(ValueWithExpiration(b"value", 50.0), CONTACTS[:2])
    results = [messages.find_result(found, now=0.0, room=room) for room in (5, 4)]
    answer = messages.find_answer(answer_of(results), [1, 2], SETTINGS, 0.0)
    assert list(answer.found) == [1]
    assert results[1].type == dht_pb2.NOT_FOUND
    assert list(results[1].nearest_peer_ids) == [peer.to_bytes() for peer in PEERS[:2]]


@given(st.lists(st.binary(max_size=12), max_size=20))
def test_addresses_are_read_with_care(raw: list[bytes]):
    good = Multiaddr("/dns4/example.org/tcp/80")
    assert messages.maddrs_in([good.to_bytes(), *raw], 3)[0] == good
    assert len(messages.maddrs_in(raw, 3)) <= 3


def test_who_we_are():
    assert messages.node_info(None).ByteSize() == 0
    assert messages.node_info(1).SerializeToString() == b"\x0a\x14" + bytes(19) + b"\x01"


def test_verdicts_are_read_with_care():
    response = dht_pb2.StoreResponse(store_ok=[True, False, False, False, True], verdicts=[2, 5, 999, 1])
    expected = [Verdict.STORED, Verdict.NO_ROOM, Verdict.UNKNOWN, Verdict.UNKNOWN]
    assert messages.store_verdicts(response, 4) == expected
    assert messages.store_verdicts(response, 6) == [*expected, Verdict.STORED, Verdict.UNKNOWN]
    assert messages.store_verdicts(dht_pb2.StoreResponse(verdicts=[5]), 2) == [Verdict.NO_ROOM, Verdict.UNKNOWN]
