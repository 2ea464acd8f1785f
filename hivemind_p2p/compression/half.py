"""FLOAT16 and MEANSTD_16BIT: two bytes per element.

Infinities, and numbers that float16 cannot reach, come back as its largest, 65504; NaN stays NaN. What MEANSTD_16BIT
cannot scale (it holds NaN, infinities or numbers whose squares float32 cannot hold, or has no rows) travels as it is.
"""

from __future__ import annotations

import math

import torch

from hivemind_p2p.compression.chunks import Scratch, chunks
from hivemind_p2p.compression.codec import FLOATING
from hivemind_p2p.compression.memory import SectionReader, SectionWriter
from hivemind_p2p.errors import CodecError

_WITHOUT_BFLOAT16 = FLOATING - {torch.bfloat16}
_LARGEST = torch.finfo(torch.float16).max
_SMALLEST_STD = 1e-18  # the squares of smaller numbers get lost in float32


class Float16:
    """Encodes into the bytes directly, whatever the strides."""

    writes, reads = _WITHOUT_BFLOAT16, FLOATING

    def encode(self, tensor: torch.Tensor) -> bytes:
        writer = SectionWriter(2 * tensor.numel())
        halves = writer.take(torch.float16, tensor.numel())
        halves.view(tensor.shape).copy_(tensor)
        halves.clamp_(-_LARGEST, _LARGEST)
        return writer.finish()

    def lengths(self, size: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        return 2 * math.prod(size), 2 * math.prod(size)

    def decode(self, sections: SectionReader, size: tuple[int, ...], dtype: torch.dtype, length: int) -> torch.Tensor:
        return sections.take(torch.float16, math.prod(size)).to(dtype, copy=True).view(size)


class MeanStd16Bit:
    """Every row (the last dimension) is shifted and scaled to mean 0 and standard deviation 1, then sent as float16.

    The sections: float16 values, float32 means, float32 standard deviations.
    """

    writes, reads = _WITHOUT_BFLOAT16, FLOATING

    def encode(self, tensor: torch.Tensor) -> bytes | None:
        if tensor.dim() == 0 or tensor.numel() == 0:
            return None
        row = tensor.shape[-1]
        rows = tensor.reshape(-1, row)
        writer = SectionWriter(2 * rows.numel() + 8 * len(rows))
        values = writer.take(torch.float16, rows.numel()).view(rows.shape)
        means, stds = torch.empty(2, len(rows), 1, dtype=torch.float32, device="cpu")
        scratch = Scratch()
        for chunk in chunks(len(rows), row=row):
            scaled = scratch(torch.float32, rows[chunk].numel()).view(-1, row).copy_(rows[chunk])
            torch.mean(scaled, dim=1, keepdim=True, out=means[chunk])
            scaled.sub_(means[chunk])
            torch.linalg.vector_norm(scaled, dim=1, keepdim=True, out=stds[chunk])
            stds[chunk].div_(math.sqrt(row)).clamp_min_(_SMALLEST_STD)
            values[chunk].copy_(scaled.div_(stds[chunk]))
        writer.put(means.view(-1))
        writer.put(stds.view(-1))
        return writer.finish() if bool(torch.isfinite(stds).all()) else None

    def lengths(self, size: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        length = 2 * math.prod(size) + 8 * math.prod(size[:-1])
        return length, length

    def decode(self, sections: SectionReader, size: tuple[int, ...], dtype: torch.dtype, length: int) -> torch.Tensor:
        if not size:
            raise CodecError("MEANSTD_16BIT scales rows, and a tensor without dimensions has none")
        count, row = math.prod(size[:-1]), size[-1]
        values = sections.take(torch.float16, count * row).view(count, row)
        means, stds = (sections.take(torch.float32, count).view(-1, 1) for _ in range(2))
        tensor = torch.empty((count, row), dtype=dtype, device="cpu")
        precise = torch.float64 if dtype == torch.float64 else torch.float32
        scratch = Scratch()
        for chunk in chunks(count if row else 0, row=row):
            scaled = scratch(precise, values[chunk].numel()).view(-1, row).copy_(values[chunk])
            tensor[chunk].copy_(scaled.mul_(stds[chunk]).add_(means[chunk]))
        return tensor.view(size)
