"""The hand-written messages against protobuf's own: the same bytes mean the same, whoever writes them."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.wire import runtime_pb2
from hivemind_p2p.wire.expert_messages import MAX_FIELDS, ExpertMessage, TensorMessage
from hivemind_p2p.wire.framing import varint

int32 = st.integers(0, 2**31 - 1)
tensors = st.builds(
    TensorMessage,
    st.binary(max_size=300), st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple), st.booleans(),
    st.text(max_size=9), st.sampled_from([0, 1, 5, 100]), int32,
)  # fmt: skip
messages = st.builds(ExpertMessage, st.text(max_size=20), st.lists(tensors, max_size=3), st.binary(max_size=20))


def by_protobuf(message: ExpertMessage) -> runtime_pb2.ExpertRequest:
    return runtime_pb2.ExpertRequest(
        uid=message.uid,
        metadata=message.metadata,
        tensors=[runtime_pb2.Tensor(**vars(each)) for each in message.tensors],
    )


def plain(message: ExpertMessage) -> ExpertMessage:
    """The same, with bytes for buffers."""
    for tensor in message.tensors:
        tensor.buffer = bytes(tensor.buffer)
    return message


@given(messages)
def test_protobuf_reads_what_we_write(message: ExpertMessage) -> None:
    assert runtime_pb2.ExpertRequest.FromString(message.SerializeToString()) == by_protobuf(message)
    assert b"".join(message.pieces()) == message.SerializeToString()


@given(messages)
def test_we_read_what_protobuf_writes(message: ExpertMessage) -> None:
    assert plain(ExpertMessage.FromString(by_protobuf(message).SerializeToString())) == message


@given(messages, st.data())
def test_damaged_bytes_are_a_message_or_an_error_as_protobuf_says(message: ExpertMessage, data: st.DataObject) -> None:
    damaged = bytearray(message.SerializeToString()) or bytearray(b"x")
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    try:
        expected = runtime_pb2.ExpertRequest.FromString(bytes(damaged))
    except DecodeError:
        with pytest.raises(DecodeError):
            ExpertMessage.FromString(damaged)
        return
    try:
        got = ExpertMessage.FromString(damaged)
    except DecodeError:
        return  # groups, which nobody sends, and the like
    assert by_protobuf(plain(got)) == _known(expected)


def _known(message: runtime_pb2.ExpertRequest) -> runtime_pb2.ExpertRequest:
    message.DiscardUnknownFields()
    return message


def test_buffers_are_not_copied() -> None:
    memory = bytearray(1000)
    pieces = ExpertMessage("ffn.0", [TensorMessage(memoryview(memory), (250,), dtype="float32")]).pieces()
    memory[0] = 7
    assert pieces[-1][0] == 7
    came = bytearray(b"".join(pieces))
    [tensor] = ExpertMessage.FromString(came).tensors
    came[-1000] = 9
    assert tensor.buffer[0] == 9


def test_sizes_that_are_not_packed_are_read_too() -> None:
    fields = b"\x10\x03\x10\x04"
    assert TensorMessage.parse(memoryview(fields)).size == (3, 4)
    assert tuple(runtime_pb2.Tensor.FromString(fields).size) == (3, 4)


def test_what_would_take_long_to_read_is_refused() -> None:
    with pytest.raises(DecodeError, match="fields"):
        ExpertMessage.FromString(b"\x12\x00" * (MAX_FIELDS + 1))
    many = b"\x12" + varint(5000) + bytes(5000)
    with pytest.raises(DecodeError, match="dimensions"):
        TensorMessage.parse(memoryview(many))
