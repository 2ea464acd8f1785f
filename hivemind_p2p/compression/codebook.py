"""What UNIFORM_8BIT and QUANTILE_8BIT share: a codebook of at most 256 values, and a byte per element that names one.

The sections: the codebook's length (int64), the codebook (float32), the indices (uint8). A reader needs nothing else,
so how the codebook is chosen is the writer's business. Ours give less error than hivemind's, see ``uniform`` and
``quantile``.

A tensor that would not get smaller travels as it is, and so does one that holds NaN, infinities or numbers beyond
float32: they cannot be averaged, and should not be hidden. (hivemind turns all of such a tensor into NaN.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch

from hivemind_p2p.compression.chunks import CHUNK, Scratch, chunks
from hivemind_p2p.compression.codec import FLOATING, DecodesAhead
from hivemind_p2p.compression.memory import SectionWriter
from hivemind_p2p.errors import CodecError

CODES: Final = 256
_LARGEST: Final = torch.finfo(torch.float32).max
_SMALLEST_SPREAD: Final = 1e-28  # below, float32 cannot hold what bins are scaled by


@dataclass(frozen=True)
class Bins:
    """What a quantizer decided on.

    Attributes:
        of: the bin (int32, 0 to 255) of every element of a chunk; elements of one bin are near each other.
        codebook: a value (float32) for every bin, where that is known to do; None: the averages of their elements.
    """

    of: Callable[[torch.Tensor, Scratch], torch.Tensor]
    codebook: torch.Tensor | None = None


@dataclass(frozen=True)
class Extent:
    """Where the elements of a tensor lie: NaN if one of them is.

    Attributes:
        low: the least.
        high: the greatest.
        mean: of all; the middle, if float32 cannot sum them.
    """

    low: float
    high: float
    mean: float

    @classmethod
    def of(cls, flat: torch.Tensor) -> Extent:
        """Look at all elements of a tensor that has some."""
        parts = torch.split(flat, CHUNK)
        lows, highs = zip(*map(torch.aminmax, parts), strict=True)
        low, high = float(torch.stack(lows).min()), float(torch.stack(highs).max())
        mean = sum(float(part.sum(dtype=torch.float32)) for part in parts) / len(flat)
        if not math.isfinite(mean):
            mean = (low + high) / 2
        return cls(low, high, min(max(mean, low), high))  # rounding may have carried it out

    @property
    def bins_can_cover_it(self) -> bool:
        """Whether float32 can hold all of it, and what bins are scaled by."""
        spread = self.high - self.low
        return (spread == 0 or spread > _SMALLEST_SPREAD) and max(self.high, -self.low, spread) <= _LARGEST


Quantizer: TypeAlias = Callable[[torch.Tensor, Extent], Bins]
"""Looks at a tensor (one-dimensional, contiguous, floating), and decides on bins."""


class CodebookCodec(DecodesAhead):
    """One codebook for the whole tensor, a value for each of the bins into which a quantizer puts the elements."""

    writes = reads = FLOATING

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer

    def encode(self, tensor: torch.Tensor) -> bytes | None:
        numel, length = tensor.numel(), 8 + 4 * CODES + tensor.numel()
        if length >= numel * tensor.dtype.itemsize:
            return None
        flat = tensor.reshape(-1)
        extent = Extent.of(flat)
        if not extent.bins_can_cover_it:
            return None
        writer = SectionWriter(length)
        writer.put_int64(CODES)
        codebook, indices = writer.take(torch.float32, CODES), writer.take(torch.uint8, numel)
        codebook.copy_(_fill(indices, flat, self._quantizer(flat, extent)))
        return writer.finish()

    def lengths(self, size: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        return 8 + math.prod(size), 8 + 4 * CODES + math.prod(size)

    def total(self, octets: torch.Tensor, numel: int) -> int:
        return 8 + 4 * read_codes(octets, 0) + numel

    def decode_some(self, octets: torch.Tensor, into: torch.Tensor, done: int) -> int:
        if len(octets) < 8:
            return done
        codes = read_codes(octets, 0)
        head = 8 + 4 * codes
        end = min(len(octets) - head, len(into))
        if end <= done:
            return done
        codebook, indices = octets[8:head].view(torch.float32).to(into.dtype), octets[head + done : head + end]
        check_indices(indices, codes)
        scratch = Scratch()
        for chunk, named in chunks(into[done:end], indices):
            torch.index_select(codebook, 0, scratch(torch.int64, len(named)).copy_(named), out=chunk)
        return end


def _fill(indices: torch.Tensor, flat: torch.Tensor, bins: Bins) -> torch.Tensor:
    """Write every element's bin; the codebook."""
    scratch = Scratch()
    if bins.codebook is not None:
        for chunk, named in chunks(flat, indices):
            named.copy_(bins.of(chunk, scratch))
        return bins.codebook
    sums = torch.zeros(CODES, dtype=torch.float64, device="cpu")
    counts = torch.zeros(CODES, dtype=torch.int64, device="cpu")
    for chunk, named in chunks(flat, indices):
        found = bins.of(chunk, scratch)
        named.copy_(found)
        counts += torch.bincount(named, minlength=CODES)
        wide = scratch(torch.float64, len(chunk)).copy_(chunk)
        sums.scatter_add_(0, scratch(torch.int64, len(chunk)).copy_(found), wide)
    return sums.div_(counts.clamp_min_(1))


def check_indices(indices: torch.Tensor, codes: int) -> None:
    """Refuse indices (uint8) beyond a codebook with so many values."""
    if codes < CODES and len(indices) and int(indices.max()) >= codes:
        raise CodecError(f"an index of {int(indices.max())} into a codebook of {codes} values")


def read_codes(octets: torch.Tensor, start: int) -> int:
    """The length of a codebook, from the eight bytes behind ``start``; refuse one that no byte can name all of."""
    codes = int(octets[start : start + 8].view(torch.int64))
    if not 0 <= codes <= CODES:
        raise CodecError(f"the codebook has {codes} values by their headers, and a byte names one of {CODES}")
    return codes
