"""Messages that anybody may have sent: a tensor, or a CodecError that says what is wrong."""

from __future__ import annotations

import contextlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.compression import CompressionType, OwnCompression, deserialize_tensor, serialize_tensor
from hivemind_p2p.compression.codec import DTYPES
from hivemind_p2p.errors import CodecError
from hivemind_p2p.wire import runtime_pb2

NONE, FLOAT16, MEANSTD, QUANTILE, UNIFORM, BLOCKWISE = (
    CompressionType[name]
    for name in ("NONE", "FLOAT16", "MEANSTD_16BIT", "QUANTILE_8BIT", "UNIFORM_8BIT", "BLOCKWISE_8BIT")
)


def message(compression: int = NONE, buffer: bytes = bytes(8), size: list[int] | None = None, **fields: object):
    return runtime_pb2.Tensor(
        **{
            "compression": compression,
            "buffer": buffer,
            "size": [2] if size is None else size,
            "dtype": "float32",
            **fields,
        }
    )


@given(
    st.sampled_from([*range(-1, 8), 100]),
    st.binary(max_size=60) | st.integers(0, 3).map(lambda codes: struct.pack("<qqf", codes, codes, 1.0)),
    st.lists(st.sampled_from([0, 1, 2, 3, 4, 2**31, 2**32 - 1]), max_size=6),
    st.sampled_from(sorted(DTYPES)) | st.text(max_size=9),
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
)
def test_anything_is_a_tensor_or_a_codec_error(
    compression: int, buffer: bytes, size: list[int], dtype: str, requires_grad: bool, chunks: int
):
    hostile = message(compression, buffer, size, dtype=dtype, requires_grad=requires_grad, chunks=chunks)
    with contextlib.suppress(CodecError):
        tensor = deserialize_tensor(hostile, max_bytes=10_000)
        assert list(tensor.shape) == size
        assert tensor.element_size() * tensor.numel() <= 10_000
        tensor.detach().zero_()


@given(st.sampled_from([*CompressionType, *OwnCompression]), st.data())
def test_damaged_bytes_are_a_tensor_or_a_codec_error(compression: CompressionType, data: st.DataObject):
    good = serialize_tensor(torch.linspace(-1, 1, 1500).view(3, 500), compression)
    damaged = bytearray(good.buffer)
    for position in data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=5)):
        damaged[position] = data.draw(st.integers(0, 255))
    good.buffer = bytes(damaged[: len(damaged) - data.draw(st.integers(0, 3))])
    with contextlib.suppress(CodecError):
        assert deserialize_tensor(good).shape == (3, 500)


def codebook(codes: int, *indices: int) -> bytes:
    return struct.pack(f"<q{max(codes, 0)}f", codes, *range(max(codes, 0))) + bytes(indices)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (message(buffer=bytes(7)), "is 8 bytes, and 7 came"),
        (message(buffer=bytes(9)), "is 8 bytes, and 9 came"),
        (message(dtype="float31"), "unknown dtype 'float31'"),
        (message(dtype=""), "unknown dtype ''"),
        (message(compression=77), "unknown compression 77"),
        (message(size=[2**32 - 1] * 9), "above the limit"),
        (message(size=[0, *[2**32 - 1] * 9], buffer=b""), "above the limit"),
        (message(size=[1] * 65, buffer=bytes(4)), "65 dimensions"),
        (message(size=[2**28], buffer=b""), "above the limit of 1000 bytes"),
        (message(dtype="int16", buffer=bytes(4), requires_grad=True), "cannot require a gradient"),
        (message(dtype="bool", buffer=b"\1\2"), "bytes other than 0 and 1"),
        (message(dtype="bfloat16", buffer=bytes(6)), "2 or 4 bytes each, not 6"),
        (message(FLOAT16, bytes(6)), "is 4 bytes"),
        (message(FLOAT16, dtype="int64"), "carries no int64"),
        (message(MEANSTD, bytes(10), size=[]), "without dimensions"),
        (message(MEANSTD, bytes(11)), "is 12 bytes"),
        (message(UNIFORM, codebook(2, 0, 2)), "index of 2 into a codebook of 2"),
        (message(UNIFORM, codebook(0, 0, 0)), "index of 0 into a codebook of 0"),
        (message(QUANTILE, codebook(3, 0, 1, 2)), "22 bytes by their headers, and 23 came"),
        (message(QUANTILE, struct.pack("<q", -1) + bytes(6)), "by their headers"),
        (message(QUANTILE, struct.pack("<q", 2**62) + bytes(6)), "by their headers"),
        (message(QUANTILE, codebook(257, 0, 0)), "is 10 to 1034 bytes, and 1038 came"),
        (message(UNIFORM, codebook(2, 0, 1), dtype="uint8"), "carries no uint8"),
        (message(BLOCKWISE, struct.pack("<qqff", 2, 0, 1, 1) + bytes(2)), "by their headers"),
        (message(BLOCKWISE, struct.pack("<qqff", 1, 1, 1, 1) + b"\0\1"), "index of 1 into a codebook of 1"),
        (message(BLOCKWISE, struct.pack("<qqff", 1, -1, 1, 1) + b"\0\1"), "by their headers"),
    ],
)
def test_what_is_wrong_is_said(bad: runtime_pb2.Tensor, words: str):
    with pytest.raises(CodecError, match=words):
        deserialize_tensor(bad, max_bytes=1000)


def test_short_codebooks_are_read():
    got = deserialize_tensor(message(UNIFORM, codebook(3, 2, 0)))
    assert got.tolist() == [2.0, 0.0]


def test_the_limit_is_of_the_decoded_tensor():
    small = serialize_tensor(torch.zeros(10_000, dtype=torch.float64), UNIFORM)
    assert len(small.buffer) < 12_000
    assert deserialize_tensor(small, max_bytes=80_000).shape == (10_000,)
    with pytest.raises(CodecError, match="above the limit of 79999 bytes"):
        deserialize_tensor(small, max_bytes=79_999)
