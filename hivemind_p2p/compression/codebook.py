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
from typing import Final, TypeAlias

import torch

from hivemind_p2p.compression.chunks import Scratch, chunks
from hivemind_p2p.compression.codec import FLOATING
from hivemind_p2p.compression.memory import SectionReader, SectionWriter
from hivemind_p2p.errors import CodecError

CODES: Final = 256
_LARGEST: Final = torch.finfo(torch.float32).max
_SMALLEST_RANGE: Final = 1e-28  # below, float32 cannot hold what bins are scaled by

Bins: TypeAlias = Callable[[torch.Tensor, Scratch], torch.Tensor]
"""The bin (int64, 0 to 255) of every element of a chunk; elements of one bin are near each other."""

Quantizer: TypeAlias = Callable[[torch.Tensor, float, float], Bins]
"""Looks at a tensor (one-dimensional, contiguous, floating), its least and greatest element, and decides on bins."""


class CodebookCodec:
    """One codebook for the whole tensor: the averages of the bins into which a quantizer puts the elements."""

    writes = reads = FLOATING

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer

    def encode(self, tensor: torch.Tensor) -> bytes | None:
        numel, length = tensor.numel(), 8 + 4 * CODES + tensor.numel()
        if length >= numel * tensor.dtype.itemsize:
            return None
        flat = tensor.reshape(-1)
        low, high = (float(bound) for bound in torch.aminmax(flat))
        if not (high == low or high - low > _SMALLEST_RANGE) or not max(high, -low, high - low) <= _LARGEST:
            return None  # NaN and infinities end here, too
        writer = SectionWriter(length)
        writer.put_int64(CODES)
        codebook, indices = writer.take(torch.float32, CODES), writer.take(torch.uint8, numel)
        codebook.copy_(_fill(indices, flat, self._quantizer(flat, low, high)))
        return writer.finish()

    def lengths(self, size: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        return 8 + math.prod(size), 8 + 4 * CODES + math.prod(size)

    def decode(self, sections: SectionReader, size: tuple[int, ...], dtype: torch.dtype, length: int) -> torch.Tensor:
        numel, codes = math.prod(size), sections.take_int64()
        check_length(8 + 4 * codes + numel, length)
        codebook, indices = sections.take(torch.float32, codes).to(dtype), sections.take(torch.uint8, numel)
        check_indices(indices, codes)
        tensor = torch.empty(size, dtype=dtype, device="cpu")
        flat, scratch = tensor.view(-1), Scratch()
        for chunk in chunks(numel):
            bins = scratch(torch.int64, chunk.stop - chunk.start).copy_(indices[chunk])
            torch.index_select(codebook, 0, bins, out=flat[chunk])
        return tensor


def average(flat: torch.Tensor) -> float:
    """Of all elements; infinite or NaN where float32 cannot sum them."""
    return float(flat.sum(dtype=torch.float32)) / len(flat)


def _fill(indices: torch.Tensor, flat: torch.Tensor, bins_of: Bins) -> torch.Tensor:
    """Write every element's bin; the average of every bin (0 for an empty one), in float64."""
    scratch, sums = Scratch(), torch.zeros(CODES, dtype=torch.float64, device="cpu")
    for chunk in chunks(len(flat)):
        bins = bins_of(flat[chunk], scratch)
        indices[chunk].copy_(bins)
        sums.scatter_add_(0, bins, scratch(torch.float64, len(bins)).copy_(flat[chunk]))
    return torch.div(sums, torch.bincount(indices, minlength=CODES).clamp_min_(1))


def check_indices(indices: torch.Tensor, codes: int) -> None:
    """Refuse indices (uint8) beyond a codebook with so many values."""
    if codes < CODES and len(indices) and int(indices.max()) >= codes:
        raise CodecError(f"an index of {int(indices.max())} into a codebook of {codes} values")


def check_length(expected: int, length: int) -> None:
    """Refuse bytes whose own header says another number than there are."""
    if expected != length:
        raise CodecError(f"the sections are {expected} bytes by their headers, and {length} came")
