"""QUANTILE_8BIT: bins that are narrow where the elements are.

hivemind gives every bin the same number of elements: the widest bins, at the tails, make most of the error. The squared
error is least when bins are as dense as the cube root of the elements' density (Panter and Dite, "Quantization
distortion in pulse-count modulation with nonuniform spacing of levels", 1951). So are 7/8 of ours; the rest get equal
numbers of elements: however long the tails are, the others are not left with a few bins.

Nothing is sorted: elements are counted by their distance from the mean in float16, which is monotone in its bits (once
negative ones are turned around) and has at most 65536 values. 256 values or fewer get a code each.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import torch

from hivemind_p2p.compression.chunks import CHUNK, Scratch, chunks
from hivemind_p2p.compression.codebook import CODES, Bins, average

_KEYS: Final = 2**16
_EQUAL_SHARE: Final = 1 / 8
_GREATEST_KEY_VALUE: Final = 2.0**15


def quantile_bins(flat: torch.Tensor, low: float, high: float) -> Bins:
    """A ``codebook.Quantizer``."""
    middle = average(flat)
    if not math.isfinite(middle):
        middle = (low + high) / 2
    scale = _GREATEST_KEY_VALUE / max(high - middle, middle - low) if high > low else 0.0

    def keys_of(chunk: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        distances = scratch.shifted(chunk, middle).mul_(scale)
        halves = scratch(torch.float16, len(chunk)).copy_(distances)
        return scratch(torch.int64, len(chunk)).copy_(halves.view(torch.uint16))

    scratch, counts = Scratch(), torch.zeros(_KEYS, dtype=torch.int64, device="cpu")
    ones = torch.ones(min(len(flat), CHUNK), dtype=torch.int64, device="cpu")
    for chunk in chunks(len(flat)):
        keys = keys_of(flat[chunk], scratch)
        counts.scatter_add_(0, keys, ones[: len(keys)])
    codes = _codes(counts)

    def bins_of(chunk: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        keys = keys_of(chunk, scratch)
        found = torch.index_select(codes, 0, keys, out=scratch(torch.uint8, len(chunk)))
        return keys.copy_(found)

    return bins_of


def _codes(counts: torch.Tensor) -> torch.Tensor:
    """The code (uint8) of every key, given how many elements have it."""
    order, values = _keys_in_order()
    ordered = counts[order]
    occupied = ordered.nonzero().view(-1)
    if len(occupied) <= CODES:
        ranks = torch.arange(len(occupied), device="cpu")
    else:
        numbers = ordered[occupied].to(torch.float64)
        gaps = torch.diff(values[occupied], prepend=values[occupied[:1]])
        dense = _shares(numbers.pow(1 / 3) * gaps.pow(2 / 3), (1 - _EQUAL_SHARE) * CODES)
        equal = _shares(numbers, _EQUAL_SHARE * CODES)
        shares = dense + equal
        ranks = (shares.cumsum(0) - shares / 2).long().clamp_(0, CODES - 1)
    codes = torch.zeros(_KEYS, dtype=torch.uint8, device="cpu")
    codes[order[occupied]] = ranks.to(torch.uint8)
    return codes


def _shares(weights: torch.Tensor, bins: float) -> torch.Tensor:
    """Deal out bins by weight, about one at most: a frequent value needs no more, nor the gap before an outlier."""
    for _ in range(4):  # the sum shrinks by what is taken off, and the bound with it
        weights = weights.clamp(max=float(weights.sum()) / bins)
    return weights * (bins / weights.sum())


@cache
def _keys_in_order() -> tuple[torch.Tensor, torch.Tensor]:
    """All keys by the number that they stand for, and those numbers; of negative ones the greatest key comes first."""
    keys = torch.arange(_KEYS, dtype=torch.int32, device="cpu")
    order = torch.cat([keys[_KEYS // 2 :].flip(0), keys[: _KEYS // 2]])
    return order, order.to(torch.uint16).view(torch.float16).to(torch.float64)
