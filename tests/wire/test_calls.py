"""The call formats are hivemind 1.1.12's. Golden bytes, made with its package from PyPI::

from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.utils import write_pbmsg
from hivemind.proto import dht_pb2, p2pd_pb2

peer = bytes.fromhex("00240801122000..0007")          # and callId=bytes(range(16)) in each of:
await write_pbmsg(writer, p2pd_pb2.PersistentConnectionRequest(callId=..., callUnary=p2pd_pb2.CallUnaryRequest(
    peer=peer, proto="DHTProtocol.rpc_ping", data=dht_pb2.PingRequest(validate=True).SerializeToString())))
await write_pbmsg(writer, ...(unaryResponse=p2pd_pb2.CallUnaryResponse(
    response=dht_pb2.PingResponse(available=True, dht_time=1.5).SerializeToString())))
await write_pbmsg(writer, ...(unaryResponse=p2pd_pb2.CallUnaryResponse(error=repr(ValueError("no such key")).encode())))
await P2P.send_protobuf(dht_pb2.PingRequest(validate=True), writer)
await P2P.send_protobuf(P2P.END_OF_STREAM, writer)
await P2P.send_protobuf(p2pd_pb2.RPCError(message="no such key"), writer)
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.errors import ProtocolViolation
from hivemind_p2p.wire import calls, dht_pb2, p2pd_pb2
from hivemind_p2p.wire.framing import Frame, FrameReader, varint, varint_header

CALL_ID = bytes(range(16))
PEER = b"\x00\x24\x08\x01\x12\x20" + bytes(31) + b"\x07"
PING = "DHTProtocol.rpc_ping"
PING_DATA = dht_pb2.PingRequest(validate=True).SerializeToString()
PONG_DATA = dht_pb2.PingResponse(available=True, dht_time=1.5).SerializeToString()

REQUEST = bytes.fromhex(
    "560a10000102030405060708090a0b0c0d0e0f1a420a2600240801122000000000000000000000000000000000000000000000000000000000"
    "00000007121444485450726f746f636f6c2e7270635f70696e671a021801"
)
RESPONSE = bytes.fromhex("210a10000102030405060708090a0b0c0d0e0f220d0a0b21000000000000f83f2801")
ERROR = bytes.fromhex(
    "2f0a10000102030405060708090a0b0c0d0e0f221b121956616c75654572726f7228276e6f2073756368206b65792729"
)
ITEM = bytes.fromhex("0000000000000000021801")
END = bytes.fromhex("010000000000000000")
FAILURE = bytes.fromhex("01000000000000000d0a0b6e6f2073756368206b6579")

call_ids = st.binary(min_size=16, max_size=16)
small = st.binary(max_size=300)


def body_of(raw: bytes) -> bytearray:
    reader = FrameReader(varint_header, 2**22)
    reader.feed(raw)
    frame = reader.pop()
    assert frame is not None
    assert reader.between_frames
    return frame.body


def item_of(raw: bytes) -> calls.Item | calls.ErrorItem:
    reader = FrameReader(calls.item_header, 2**22)
    reader.feed(raw)
    return calls.read_item(reader.pop())


def test_unary_calls_are_written_as_hivemind_does():
    assert calls.unary_request_head(CALL_ID, PEER, PING, len(PING_DATA)) + PING_DATA == REQUEST
    assert calls.unary_response_head(CALL_ID, len(PONG_DATA)) + PONG_DATA == RESPONSE
    assert calls.unary_error(CALL_ID, "ValueError('no such key')") == ERROR


def test_unary_calls_are_read_as_hivemind_writes_them():
    assert calls.read_request(body_of(REQUEST)) == calls.UnaryRequest(CALL_ID, bytearray(PING_DATA))
    assert calls.read_response(body_of(RESPONSE)) == calls.UnaryResponse(CALL_ID, bytearray(PONG_DATA))
    assert calls.read_response(body_of(ERROR)) == calls.UnaryError(CALL_ID, "ValueError('no such key')")


def test_items_are_written_and_read_as_hivemind_does():
    assert calls.item_head(len(PING_DATA)) + PING_DATA == ITEM
    assert calls.END_OF_ITEMS == END
    assert calls.error_item("no such key") == FAILURE
    assert item_of(ITEM) == calls.Item(bytearray(PING_DATA))
    assert item_of(END) == calls.ErrorItem("")
    assert item_of(FAILURE) == calls.ErrorItem("no such key")
    assert item_of(bytes.fromhex("0100000000000000020a00")) == calls.ErrorItem("")  # RPCError(message="")


def test_namespaces():
    assert calls.protocol_id(PING) == PING
    assert calls.protocol_id(PING, "experiment") == "experiment::DHTProtocol.rpc_ping"


@given(call_id=call_ids, peer=small, method=st.text(max_size=300), data=small)
def test_requests_are_what_protobuf_makes_of_them(call_id, peer, method, data):
    message = p2pd_pb2.PersistentConnectionRequest(callId=call_id)
    message.callUnary.CopyFrom(p2pd_pb2.CallUnaryRequest(peer=peer, proto=method, data=data))
    raw = message.SerializeToString()
    assert calls.unary_request_head(call_id, peer, method, len(data)) + data == varint(len(raw)) + raw
    assert calls.read_request(bytearray(raw)) == calls.UnaryRequest(call_id, bytearray(data))


@given(call_id=call_ids, data=small, text=st.text(st.characters(codec="utf-8"), max_size=300))
def test_answers_are_what_protobuf_makes_of_them(call_id, data, text):
    message = p2pd_pb2.PersistentConnectionRequest(callId=call_id)
    message.unaryResponse.response = data
    raw = message.SerializeToString()
    assert calls.unary_response_head(call_id, len(data)) + data == varint(len(raw)) + raw
    assert calls.read_response(bytearray(raw)) == calls.UnaryResponse(call_id, bytearray(data))
    message.unaryResponse.error = text.encode()
    raw = message.SerializeToString()
    assert calls.unary_error(call_id, text) == varint(len(raw)) + raw
    assert calls.read_response(bytearray(raw)) == calls.UnaryError(call_id, text)


UNKNOWN = {
    "varint": b"\xa0\x06\xff\x01",  # field 100
    "fixed32": b"\xa5\x06abcd",
    "fixed64": b"\xa1\x06abcdefgh",
    "bytes": b"\xa2\x06\x03xyz",
}


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_fields_that_we_do_not_know_are_passed_over(unknown):
    call = b"\x0a\x01p" + unknown + b"\x12\x01m" + b"\x1a\x04data" + unknown
    body = unknown + b"\x1a" + varint(len(call)) + call + b"\x0a\x10" + CALL_ID + unknown
    assert p2pd_pb2.PersistentConnectionRequest.FromString(body).callUnary.data == b"data"
    assert calls.read_request(bytearray(body)) == calls.UnaryRequest(CALL_ID, bytearray(b"data"))


@given(st.binary(max_size=80))
def test_garbage_is_a_violation_and_nothing_else(raw):
    for read in (calls.read_request, calls.read_response):
        try:
            read(bytearray(raw))
        except ProtocolViolation:
            continue
        p2pd_pb2.PersistentConnectionRequest.FromString(raw)  # what we read, protobuf reads


@given(position=st.integers(0), replacement=st.integers(0, 255), source=st.sampled_from([REQUEST, RESPONSE, ERROR]))
def test_damaged_messages_are_read_or_refused(position, replacement, source):
    raw = bytearray(source[1:])
    raw[position % len(raw)] = replacement
    for read in (calls.read_request, calls.read_response):
        try:
            read(bytearray(raw))
        except ProtocolViolation:
            continue


GARBAGE = {
    "nothing": (b"", "neither a call nor an answer"),
    "no call id": (b"\x1a\x02\x1a\x00", "has no call id"),
    "short call id": (b"\x0a\x03abc\x1a\x02\x1a\x00", "has 3 bytes instead of 16"),
    "no data": (b"\x0a\x10" + CALL_ID + b"\x1a\x03\x0a\x01p", "carries no data"),
    "an answer": (RESPONSE[1:], "neither a call nor an answer"),
    "a field beyond the end": (b"\x0a\x10" + CALL_ID + b"\x1a\x7f\x1a\x00", "beyond the end"),
    "a part beyond its message": (b"\x0a\x10" + CALL_ID + b"\x1a\x02\x1a\x01" + b"\x78\x01", "beyond the end"),
    "an open varint": (b"\x0a\x10" + CALL_ID + b"\x1a\xff", "within a number"),
    "a group": (b"\x0b\x0a\x00\x0c", "wire type 3"),
    "field 0": (b"\x02\x01x", "number 0"),
}


@pytest.mark.parametrize(("raw", "why"), GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_call_says_why(raw, why):
    with pytest.raises(ProtocolViolation, match=why):
        calls.read_request(bytearray(raw))


def test_an_answer_without_content_is_a_violation():
    with pytest.raises(ProtocolViolation, match="neither a response nor an error"):
        calls.read_response(bytearray(b"\x0a\x10" + CALL_ID + b"\x22\x00"))


def test_an_error_that_is_not_utf8_is_read_all_the_same():
    assert calls.read_item(Frame(1, bytearray(b"\x0a\x02\xff!"))) == calls.ErrorItem("\ufffd!")
    with pytest.raises(ProtocolViolation, match="RPCError"):
        calls.read_item(Frame(1, bytearray(b"\x0a\x09!")))


def test_an_item_with_an_unknown_marker_is_a_violation():
    reader = FrameReader(calls.item_header, 100)
    reader.feed(b"\x02")
    with pytest.raises(ProtocolViolation, match="0x02"):
        reader.pop()
