"""Our own 8-bit codec: sizes, errors block by block, pieces; and what is measured of codecs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.compression import CompressionType, ErrorMeter, OwnCompression, deserialize_tensor, serialize_tensor
from hivemind_p2p.compression.block_int8 import BLOCK, RECORD, BlockInt8Codec
from hivemind_p2p.compression.measure import EVERY, SAMPLE, elements_per_second, fastest, relative_error

INT8 = OwnCompression.BLOCK_INT8
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def test_a_single_row_shrinks_three_point_eight_times() -> None:
    row = torch.randn(1, 1024)
    assert len(serialize_tensor(row).SerializeToString()) > 3.8 * len(serialize_tensor(row, INT8).SerializeToString())


@given(st.integers(0, 2**32 - 1), st.integers(1, 1000), st.sampled_from(FLOATS), st.floats(-30, 30))
def test_every_element_is_within_half_a_step_of_its_block(seed: int, numel: int, dtype: torch.dtype, exponent: float):
    exponent = exponent / 10 if dtype == torch.float16 else exponent
    tensor = (torch.randn(numel, generator=torch.Generator().manual_seed(seed)) * 10**exponent).to(dtype)
    got = deserialize_tensor(serialize_tensor(tensor, INT8))
    assert (got.dtype, got.shape) == (dtype, tensor.shape)
    for block, came in zip(tensor.double().split(BLOCK), got.double().split(BLOCK), strict=True):
        step = block.abs().max() / 127
        rounding = torch.finfo(dtype).eps * block.abs().max()
        assert ((block - came).abs() <= step * 0.5001 + rounding).all()


def test_it_errs_less_than_hivemind_s_eight_bits() -> None:
    torch.manual_seed(0)
    tensor = torch.randn(300_000)
    error = relative_error(tensor, INT8)
    assert error < 0.0075
    assert error < min(
        relative_error(tensor, each) for each in (CompressionType.UNIFORM_8BIT, CompressionType.BLOCKWISE_8BIT)
    )


def test_elements_are_rounded_as_torch_does() -> None:
    """To the nearest, and of two to the even one."""
    halves = torch.arange(-254, 255) / 2
    tensor = torch.cat([halves, torch.tensor([127.0])])
    got = deserialize_tensor(serialize_tensor(tensor, INT8))
    for block, came in zip(tensor.split(BLOCK), got.split(BLOCK), strict=True):
        step = block.abs().max() / 127
        assert torch.equal((came / step).round(), (block * (127 / block.abs().max())).round())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_block_that_is_not_finite_comes_back_as_nan_and_the_others_as_they_are(bad: float) -> None:
    tensor = torch.ones(3 * BLOCK + 5)
    tensor[BLOCK + 3] = bad
    got = deserialize_tensor(serialize_tensor(tensor, INT8))
    assert got[BLOCK : 2 * BLOCK].isnan().all()
    assert torch.equal(got[:BLOCK], tensor[:BLOCK])
    assert torch.equal(got[2 * BLOCK :], tensor[2 * BLOCK :])
    tensor[-1] = bad
    assert deserialize_tensor(serialize_tensor(tensor, INT8))[3 * BLOCK :].isnan().all()


def test_zeros_and_numbers_next_to_nothing() -> None:
    tensor = torch.cat([torch.zeros(BLOCK), torch.full((BLOCK,), 1e-44), torch.full((BLOCK,), 3e-35), torch.ones(9)])
    got = deserialize_tensor(serialize_tensor(tensor, INT8))
    assert got[: 2 * BLOCK].abs().max() < 1e-37
    torch.testing.assert_close(got[2 * BLOCK :], tensor[2 * BLOCK :])


@given(st.integers(1, 3000), st.integers(1, 2000))
def test_pieces_are_whole_records_and_together_the_whole(numel: int, size: int) -> None:
    tensor = torch.arange(numel).sin()
    pieces = list(BlockInt8Codec().pieces(tensor, size))
    assert b"".join(pieces) == BlockInt8Codec().encode(tensor) or numel < 2
    assert all(len(piece) <= max(size, RECORD) for piece in pieces)
    assert all(len(piece) % RECORD == 0 for piece in pieces[:-1])


def test_what_would_not_get_smaller_travels_as_it_is() -> None:
    for tensor in (torch.zeros(0), torch.ones(1), torch.ones(4, dtype=torch.float16)):
        assert serialize_tensor(tensor, INT8).compression == CompressionType.NONE
    assert serialize_tensor(torch.ones(2), INT8).compression == INT8


def test_errors_are_measured_now_and_then() -> None:
    torch.manual_seed(0)
    meter = ErrorMeter()
    tensors = [torch.randn(3, SAMPLE), torch.zeros(5), torch.randn(100)]
    measured = [meter.measure(tensors[n % 3], INT8) for n in range(2 * EVERY)]
    assert [n for n, error in enumerate(measured) if error is not None] == [0, EVERY]
    assert 0.005 < measured[0] < 0.01
    assert meter.measure(tensors[0], CompressionType.NONE) == 0
    assert meter.measure(tensors[1], CompressionType.FLOAT16) == 0
    errors = meter.codecs["BLOCK_INT8"]
    assert (errors.tensors, errors.largest) == (2, max(measured[0], measured[EVERY]))
    assert errors.mean == pytest.approx((measured[0] + measured[EVERY]) / 2)
    assert repr(meter).startswith("<ErrorMeter: BLOCK_INT8 0.00")


def test_the_fastest_way_depends_on_link_and_cpu() -> None:
    ways = (CompressionType.NONE, INT8)
    assert elements_per_second(INT8) > 1e6
    assert fastest(2**20, 4, 1e6, ways) == INT8
    assert fastest(2**20, 4, 1e12, ways) == CompressionType.NONE
    twice_as_fast_there = (4 - 2 * 1.016) / 2 * elements_per_second(INT8)
    assert fastest(2**20, 4, twice_as_fast_there * 0.99, ways) == INT8
    assert fastest(2**20, 4, twice_as_fast_there * 1.01, ways) == CompressionType.NONE
