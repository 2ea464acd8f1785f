"""FLOAT16 and MEANSTD_16BIT: two bytes per element.

Infinities, and numbers that float16 cannot reach, come back as its largest, 65504; NaN stays NaN. What MEANSTD_16BIT
cannot scale (it holds NaN, infinities or numbers whose squares float32 cannot hold, or has no rows) travels as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from hivemind_p2p.compression.chunks import Scratch, chunks, convert
from hivemind_p2p.compression.codec import FLOATING, DecodesAhead
from hivemind_p2p.compression.memory import SectionReader, SectionWriter
from hivemind_p2p.errors import CodecError

_WITHOUT_BFLOAT16 = FLOATING - {torch.bfloat16}
_LARGEST = torch.finfo(torch.float16).max
_SMALLEST_STD = 1e-18  # the squares of smaller numbers get lost in float32


class Float16(DecodesAhead):
    """Just that."""

    writes, reads = _WITHOUT_BFLOAT16, FLOATING

    def encode(self, tensor: torch.Tensor) -> bytes:
        return self._encode(tensor.reshape(-1))

    def pieces(self, tensor: torch.Tensor, size: int) -> Iterator[bytes]:
        return map(self._encode, torch.split(tensor.reshape(-1), max(1, size // 2)))

    def count_pieces(self, numel: int, size: int) -> int:
        return -(-numel // max(1, size // 2))

    def _encode(self, flat: torch.Tensor) -> bytes:
        writer = SectionWriter(2 * len(flat))
        for chunk, into in chunks(flat, writer.take(torch.float16, len(flat))):
            into.copy_(chunk).clamp_(-_LARGEST, _LARGEST)
        return writer.finish()

    def lengths(self, size: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        return 2 * math.prod(size), 2 * math.prod(size)

    def total(self, octets: torch.Tensor, numel: int) -> int:
        return 2 * numel

    def decode_some(self, octets: torch.Tensor, into: torch.Tensor, done: int) -> int:
        end = len(octets) // 2
        convert(octets[2 * done : 2 * end].view(torch.float16), into[done:end])
        return end


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
        for chunk, into, mean, std in chunks(rows, values, means, stds, row=row):
            scaled = scratch(torch.float32, chunk.numel()).view(-1, row).copy_(chunk)
            torch.mean(scaled, dim=1, keepdim=True, out=mean)
            scaled.sub_(mean)
            torch.linalg.vector_norm(scaled, dim=1, keepdim=True, out=std)
            std.div_(math.sqrt(row)).clamp_min_(_SMALLEST_STD)
            into.copy_(scaled.div_(std))
        writer.put(means)
        writer.put(stds)
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
        for chunk, into, mean, std in chunks(values, tensor, means, stds, row=row):
            scaled = scratch(precise, chunk.numel()).view(chunk.shape).copy_(chunk)
            scaled.mul_(std).add_(mean)
            if dtype == torch.float16:  # what was near its largest may have been rounded beyond it
                scaled.clamp_(-_LARGEST, _LARGEST)
            into.copy_(scaled)
        return tensor.view(size)
