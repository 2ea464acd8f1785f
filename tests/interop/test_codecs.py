"""What we send, the real hivemind reads; what it sends, we read; and our 8 bits hold no less than its own."""

from __future__ import annotations

import pytest
import torch

from hivemind_p2p.compression import CompressionType, deserialize_tensor, serialize_tensor
from hivemind_p2p.compression.codec import DTYPES
from hivemind_p2p.wire import runtime_pb2
from tests.interop.conftest import HivemindPeer

FLOATS = (torch.float32, torch.float64, torch.float16)
UNKNOWN_TO_HIVEMIND = {torch.uint16, torch.uint32, torch.uint64}
CASES = [
    *((dtype, CompressionType.NONE) for dtype in DTYPES.values() if dtype not in UNKNOWN_TO_HIVEMIND),
    *((dtype, each) for dtype in FLOATS for each in CompressionType if each != CompressionType.NONE),
    (torch.bfloat16, CompressionType.UNIFORM_8BIT),
    (torch.bfloat16, CompressionType.QUANTILE_8BIT),
    (torch.bfloat16, CompressionType.BLOCKWISE_8BIT),
]


def message_of(text: str) -> runtime_pb2.Tensor:
    return runtime_pb2.Tensor.FromString(bytes.fromhex(text))


def error(got: torch.Tensor, tensor: torch.Tensor) -> float:
    return float((got.double() - tensor.double()).norm() / tensor.double().norm())


@pytest.mark.parametrize(("dtype", "compression"), CASES, ids=lambda value: getattr(value, "name", str(value)))
async def test_tensors_both_ways(hivemind: HivemindPeer, dtype: torch.dtype, compression: CompressionType):
    tensor = (torch.randn(9, 1001, generator=torch.Generator().manual_seed(1)) * 5).to(dtype)
    ours = serialize_tensor(tensor, compression)
    assert ours.compression == compression
    answer = await hivemind.do(
        "codec",
        ours=ours.SerializeToString().hex(),
        plain=serialize_tensor(tensor).SerializeToString().hex(),
        compression=compression.value,
    )
    mine, read = deserialize_tensor(ours), deserialize_tensor(message_of(answer["read"]))
    assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
    theirs = deserialize_tensor(message_of(answer["theirs"]))
    assert (theirs.dtype, theirs.shape) == (tensor.dtype, tensor.shape)
    if compression == CompressionType.NONE:
        assert torch.equal(read, tensor)
        assert torch.equal(theirs, tensor)
    else:
        # hivemind computes float16 and bfloat16 in themselves, we in float32.
        torch.testing.assert_close(read, mine, rtol=2 * torch.finfo(dtype).eps, atol=0.02 if dtype in FLOATS[2:] else 0)
        assert error(mine, tensor) <= error(theirs, tensor) * 1.001


async def test_hivemind_reads_two_bytes_of_bfloat16(hivemind: HivemindPeer, monkeypatch: pytest.MonkeyPatch):
    tensor = torch.randn(50).to(torch.bfloat16)
    plain = serialize_tensor(tensor).SerializeToString().hex()
    monkeypatch.setenv("USE_LEGACY_BFLOAT16", "0")
    ours = serialize_tensor(tensor)
    assert len(ours.buffer) == 100
    answer = await hivemind.do("codec", ours=ours.SerializeToString().hex(), plain=plain, compression=0)
    assert torch.equal(deserialize_tensor(message_of(answer["read"])), tensor)
