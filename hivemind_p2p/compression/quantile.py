"""QUANTILE_8BIT: bins that are narrow where the elements are.

hivemind gives every bin the same number of elements: the widest bins, at the tails, make most of the error. The squared
error is least when bins are as dense as the cube root of the elements' density (Panter and Dite, "Quantization
distortion in pulse-count modulation with nonuniform spacing of levels", 1951). So are 7/8 of ours; the rest get equal
numbers of elements: however long the tails are, the others are not left with a few bins.

Nothing is sorted: elements are counted by a key, their distance from the mean in float16 without its last bit. The
order of its bits is that of the numbers, once negative ones are turned around. 256 keys or fewer get a code each.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import torch

from hivemind_p2p.compression.chunks import CHUNK, Scale, Scratch
from hivemind_p2p.compression.codebook import CODES, Bins, Extent

_EQUAL_SHARE: Final = 1 / 8
_GREATEST: Final = 2.0**15
_NEGATIVE: Final = 2**14
_KEYS: Final = _NEGATIVE + 31 * 2**9 + 1
"""Bits of float16 without the last one, up to those of minus the greatest."""


def quantile_bins(flat: torch.Tensor, extent: Extent) -> Bins:
    """A ``codebook.Quantizer``."""
    farthest = max(extent.high - extent.mean, extent.mean - extent.low)
    distances = Scale(extent.mean, _GREATEST / farthest if farthest > 0 else 0.0)

    def keys_of(chunk: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        halves = scratch(torch.float16, len(chunk)).copy_(distances(chunk, scratch(torch.float32, len(chunk))))
        bits = halves.view(torch.int16).bitwise_right_shift_(1).bitwise_and_(2**15 - 1)
        return scratch(torch.int64, len(chunk)).copy_(bits)

    scratch, counts = Scratch(), torch.zeros(_KEYS, dtype=torch.int64, device="cpu")
    ones = torch.ones(CHUNK, dtype=torch.int64, device="cpu")
    for chunk in torch.split(flat, CHUNK):
        counts.scatter_add_(0, keys_of(chunk, scratch), ones[: len(chunk)])
    codes = _codes(counts)

    def bins_of(chunk: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        return torch.index_select(codes, 0, keys_of(chunk, scratch), out=scratch(torch.int32, len(chunk)))

    return Bins(bins_of)


def _codes(counts: torch.Tensor) -> torch.Tensor:
    """The code (int32) of every key, given how many elements have it; of keys that none has, any."""
    order, values = _keys_in_order()
    ordered = counts.index_select(0, order)
    ranks = (ordered > 0).cumsum(0) - 1  # among the keys that some have; others share the rank of the key before
    ranks.clamp_min_(0)
    occupied = int(ranks[-1]) + 1
    if occupied <= CODES:
        code_of_rank = torch.arange(occupied, dtype=torch.int32, device="cpu")
    else:
        numbers = torch.zeros(occupied, dtype=torch.float64, device="cpu").scatter_add_(0, ranks, ordered.double())
        places = torch.zeros_like(numbers).scatter_add_(0, ranks, torch.where(ordered > 0, values, 0.0))
        gaps = torch.diff(places, prepend=places[:1])
        dense = _shares(numbers.pow(1 / 3) * gaps.pow(2 / 3), (1 - _EQUAL_SHARE) * CODES)
        shares = dense + _shares(numbers, _EQUAL_SHARE * CODES)
        code_of_rank = (shares.cumsum(0) - shares / 2).clamp_(0, CODES - 1).to(torch.int32)
    return torch.empty(_KEYS, dtype=torch.int32, device="cpu").scatter_(0, order, code_of_rank.index_select(0, ranks))


def _shares(weights: torch.Tensor, bins: float) -> torch.Tensor:
    """Deal out bins by weight, about one at most: a frequent value needs no more, nor the gap before an outlier."""
    for _ in range(4):  # the sum shrinks by what is taken off, and the bound with it
        weights = weights.clamp(max=float(weights.sum()) / bins)
    return weights * (bins / weights.sum())


@cache
def _keys_in_order() -> tuple[torch.Tensor, torch.Tensor]:
    """All keys by the numbers that they stand for, and those numbers; of negative ones the greatest key comes first."""
    positive = torch.arange(_KEYS - _NEGATIVE, device="cpu")
    values = (positive << 1 | 1).to(torch.int16).view(torch.float16).to(torch.float64)
    values[0] = 0
    order = torch.cat([(positive + _NEGATIVE).flip(0), positive])
    return order, torch.cat([-values.flip(0), values])
