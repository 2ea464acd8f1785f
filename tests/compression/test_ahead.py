"""Parts of a tensor are encoded and decoded while others are under way, as far as a codec allows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.compression import (
    CODECS,
    PART_BYTES,
    CompressionType,
    OwnCompression,
    TensorAssembler,
    deserialize_tensor,
    in_parts,
    serialize_tensor,
    split_for_streaming,
)
from hivemind_p2p.errors import CodecError
from hivemind_p2p.wire.runtime_pb2 import Tensor

KINDS = [*CompressionType, *OwnCompression]
NOT_AHEAD = [CompressionType.NONE, CompressionType.MEANSTD_16BIT]
"""The one has nothing to decode; the other's means come last."""


@pytest.fixture(autouse=True)
def _few_bytes_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivemind_p2p.compression.streaming._AHEAD", 1)


def assemble(parts: list[Tensor], ahead: list[bool]) -> torch.Tensor:
    """The tensor of some parts; behind a part, what came is decoded if the other list says so."""
    assembler = TensorAssembler()
    for part, now in zip(parts, ahead, strict=True):
        received = assembler.add(part)
        if received is not None:
            return received.decode()
        if now:
            assembler.decode_ahead()
    raise AssertionError("there were too few parts")


@given(st.data(), st.sampled_from(KINDS), st.integers(0, 20_000), st.integers(300, 30_000))
def test_whenever_it_is_decoded_it_is_the_same(data: st.DataObject, kind: int, numel: int, part_size: int) -> None:
    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
    dtype = data.draw(st.sampled_from([each for each in dtypes if each in CODECS[kind].writes]))
    tensor = torch.randn(numel, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    message = serialize_tensor(tensor, kind)
    parts = list(split_for_streaming(message, part_size))
    got = assemble(parts, data.draw(st.lists(st.booleans(), min_size=len(parts), max_size=len(parts))))
    assert (got.dtype, got.shape, got.requires_grad, got.is_leaf) == (dtype, tensor.shape, True, True)
    assert torch.equal(got, deserialize_tensor(message))


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_decoded_ahead(kind: int) -> None:
    parts = list(split_for_streaming(serialize_tensor(torch.randn(20_000), kind), 8192))
    assembler = TensorAssembler()
    assert assembler.ahead == 0
    assembler.add(parts[0])
    assert assembler.ahead == (0 if kind in NOT_AHEAD else 8192)
    assembler.decode_ahead()
    assert assembler.ahead == 0
    assembler.add(parts[1])
    assert assembler.ahead == (0 if kind in NOT_AHEAD else 8192)
    assert (assembler._open._begun is None) == (kind in NOT_AHEAD)


@pytest.mark.parametrize("kind", [CompressionType.FLOAT16, OwnCompression.BLOCK_INT8])
def test_parts_are_encoded_one_by_one(kind: int) -> None:
    """The tensor changes while its first part is under way, and the later ones show it."""
    tensor = torch.zeros(3 * PART_BYTES)
    parts = in_parts(tensor, kind)
    first = next(parts)
    tensor.fill_(1)
    rest = list(parts)
    assert first.chunks == 1 + len(rest)
    message = Tensor(size=[len(tensor)], dtype="float32", compression=kind)
    message.buffer = b"".join(bytes(part.buffer) for part in (first, *rest))
    got = deserialize_tensor(message)
    assert got[0] == 0
    assert got[-1] == 1
    assert 0 < int((got == 0).sum()) <= PART_BYTES


@given(st.sampled_from([kind for kind in KINDS if kind not in NOT_AHEAD]), st.data())
def test_garbage_is_an_error_however_it_comes(kind: int, data: st.DataObject) -> None:
    message = serialize_tensor(torch.linspace(-1, 1, 9000), kind)
    garbage = bytearray(message.buffer)
    for at in data.draw(st.lists(st.integers(0, 40), max_size=8)):
        garbage[at] = data.draw(st.integers(0, 255))
    message.buffer = bytes(garbage)

    def outcome(ahead: bool) -> torch.Tensor | None:
        parts = list(split_for_streaming(message, 999))
        try:
            return assemble(parts, [ahead] * len(parts))
        except CodecError:
            return None

    late, early = outcome(ahead=False), outcome(ahead=True)
    assert (late is None) == (early is None)
    assert late is None or torch.equal(late.nan_to_num(), early.nan_to_num())
