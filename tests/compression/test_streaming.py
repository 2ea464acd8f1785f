from __future__ import annotations

import resource

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.compression import (
    MAX_MESSAGE_BYTES,
    MAX_UNARY_BYTES,
    PART_BYTES,
    CompressionType,
    OwnCompression,
    TensorAssembler,
    deserialize_tensor,
    fits_unary,
    serialize_in_parts,
    serialize_tensor,
    split_for_streaming,
)
from hivemind_p2p.errors import CodecError
from hivemind_p2p.wire import runtime_pb2


def assemble(parts: list[runtime_pb2.Tensor], **limits: int) -> list[torch.Tensor]:
    assembler = TensorAssembler(**limits)
    tensors = [encoded.decode() for part in parts if (encoded := assembler.add(part)) is not None]
    assembler.finish()
    return tensors


tensors = st.builds(
    lambda numel, dtype, wants: torch.arange(numel).to(dtype).requires_grad_(wants and dtype != torch.int64),
    st.integers(0, 2000),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64]),
    st.booleans(),
)  # fmt: skip


@given(st.lists(tensors, max_size=4), st.sampled_from([*CompressionType, *OwnCompression]), st.integers(20, 5000))
def test_any_split_gives_the_same_tensors(tensors: list[torch.Tensor], compression: CompressionType, part_size: int):
    floating = {torch.float32, torch.float64}
    chosen = [compression if each.dtype in floating else CompressionType.NONE for each in tensors]
    messages = [serialize_tensor(*each) for each in zip(tensors, chosen, strict=True)]
    parts = [part for message in messages for part in split_for_streaming(message, part_size)]
    assert all(len(part.buffer) <= part_size for part in parts)
    for expected, got in zip(map(deserialize_tensor, messages), assemble(parts), strict=True):
        assert (got.dtype, got.requires_grad, got.is_leaf) == (expected.dtype, expected.requires_grad, True)
        assert torch.equal(got, expected)
    direct = [
        part for each in zip(tensors, chosen, strict=True) for part in serialize_in_parts(*each, part_size=part_size)
    ]
    assert direct == parts


def test_the_parts_are_as_on_hiveminds_wire():
    message = serialize_tensor(torch.arange(3, dtype=torch.int16).requires_grad_(requires_grad=False))
    first, *rest = split_for_streaming(message, 4)
    assert first == runtime_pb2.Tensor(buffer=b"\0\0\1\0", size=[3], dtype="int16", chunks=2)
    assert rest == [runtime_pb2.Tensor(buffer=b"\2\0")]


def test_an_assembled_tensor_owns_its_memory():
    (tensor,) = assemble(list(serialize_in_parts(torch.zeros(100, requires_grad=True), part_size=64)))
    (tensor * 3).sum().backward()
    assert torch.equal(tensor.grad, torch.full((100,), 3.0))
    with torch.no_grad():
        tensor.fill_(1)


def test_hivemind_says_0_chunks_for_an_empty_tensor():
    empty = runtime_pb2.Tensor(size=[0, 3], dtype="float32")
    got, after = assemble([empty, serialize_tensor(torch.ones(2))])
    assert got.shape == (0, 3)
    assert torch.equal(after, torch.ones(2))


def parts_of_two() -> list[runtime_pb2.Tensor]:
    return [part for value in (1.0, 2.0) for part in serialize_in_parts(torch.full((10,), value), part_size=16)]


@pytest.mark.parametrize("lost", range(6))
def test_a_lost_part_is_noticed(lost: int):
    parts = parts_of_two()
    assert len(parts) == 6
    del parts[lost]
    with pytest.raises(CodecError):
        assemble(parts)


@pytest.mark.parametrize("twice", range(6))
def test_a_part_that_comes_twice_is_noticed(twice: int):
    parts = parts_of_two()
    parts.insert(twice, parts[twice])
    with pytest.raises(CodecError):
        assemble(parts)


@pytest.mark.parametrize("short", range(6))
def test_a_part_that_lost_its_tail_is_noticed(short: int):
    parts = parts_of_two()
    parts[short].buffer = parts[short].buffer[:-1]
    with pytest.raises(CodecError):
        assemble(parts)


def announced(**fields: object) -> runtime_pb2.Tensor:
    return runtime_pb2.Tensor(**{"size": [100], "dtype": "float32", "buffer": b"1234", **fields})


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([runtime_pb2.Tensor(buffer=b"1234")], "belongs to no tensor"),
        ([announced(chunks=-1)], "-1 parts"),
        ([announced(chunks=401)], "401 parts"),
        ([announced(chunks=1)], "400, and 4 came|400 bytes, and 4 came"),
        ([announced(chunks=3), runtime_pb2.Tensor()], "without bytes"),
        ([announced(chunks=3), runtime_pb2.Tensor(buffer=bytes(397))], "more bytes"),
        ([announced(chunks=3), announced(chunks=3)], "1 of 3 parts, 4 bytes"),
        ([announced(chunks=3)], "stream ended"),
        ([announced(size=[2**20], chunks=2)], "above the limit of 1000 bytes"),
        ([announced(size=[200], buffer=bytes(800)), announced(size=[200], buffer=bytes(800))], "together"),
        ([announced(size=[0], buffer=b"")] * 4, "more than 3 tensors"),
    ],
)
def test_bad_streams_are_refused(parts: list[runtime_pb2.Tensor], words: str):
    with pytest.raises(CodecError, match=words):
        assemble(parts, max_bytes=1000, max_tensors=3)


def test_an_announcement_takes_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assemblers = [TensorAssembler(max_bytes=2**30) for _ in range(8)]
    for assembler in assemblers:
        assembler.add(announced(size=[2**28], chunks=1000))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_it_says_where_it_is():
    assembler = TensorAssembler()
    assert repr(assembler) == "<TensorAssembler: 0 tensors begun, between tensors>"
    assembler.add(announced(chunks=3))
    assert repr(assembler) == (
        "<TensorAssembler: 1 tensors begun, in the middle of a NONE tensor of [100] float32, 1 of 3 parts, 4 bytes>"
    )


def test_what_is_unary():
    assert fits_unary([])
    assert fits_unary([torch.empty(MAX_UNARY_BYTES // 8), torch.empty(MAX_UNARY_BYTES // 8)])
    assert not fits_unary([torch.empty(MAX_UNARY_BYTES // 8), torch.empty(MAX_UNARY_BYTES // 8 + 1)])
    assert not fits_unary([torch.empty(MAX_UNARY_BYTES // 4 + 1, dtype=torch.bfloat16)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("compression", [CompressionType.NONE, CompressionType.BLOCKWISE_8BIT])
def test_what_is_unary_and_every_part_are_below_the_message_limit(dtype: torch.dtype, compression: CompressionType):
    itemsize = 4 if dtype == torch.bfloat16 else dtype.itemsize
    tensor = torch.zeros(MAX_UNARY_BYTES // itemsize, dtype=dtype)
    assert fits_unary([tensor])
    if dtype.is_floating_point:
        assert serialize_tensor(tensor, compression).ByteSize() < MAX_MESSAGE_BYTES
    assert all(part.ByteSize() < PART_BYTES + 200 for part in serialize_in_parts(torch.zeros(PART_BYTES)))
