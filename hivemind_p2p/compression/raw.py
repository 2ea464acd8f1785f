"""NONE: the numbers as they are, little-endian.

bfloat16 travels as float32, because older hiveminds know nothing else; readers tell by the number of bytes.
``USE_LEGACY_BFLOAT16=0`` in the environment, hivemind's own switch, sends two bytes instead.
"""

from __future__ import annotations

import math
import os

import torch

from hivemind_p2p.compression.codec import DTYPES
from hivemind_p2p.compression.memory import SectionReader, SectionWriter
from hivemind_p2p.errors import CodecError


class Raw:
    """Encodes with one copy, whatever the strides; decodes with one, or none where the memory is the reader's own."""

    writes = reads = frozenset(DTYPES.values())

    def encode(self, tensor: torch.Tensor) -> bytes:
        dtype = tensor.dtype
        if dtype == torch.bfloat16 and os.environ.get("USE_LEGACY_BFLOAT16", "1") != "0":
            dtype = torch.float32
        writer = SectionWriter(tensor.numel() * dtype.itemsize)
        writer.take(dtype, tensor.numel()).view(tensor.shape).copy_(tensor)
        return writer.finish()

    def lengths(self, size: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        numel = math.prod(size)
        return numel * dtype.itemsize, numel * (4 if dtype == torch.bfloat16 else dtype.itemsize)

    def decode(self, sections: SectionReader, size: tuple[int, ...], dtype: torch.dtype, length: int) -> torch.Tensor:
        numel = math.prod(size)
        if dtype == torch.bfloat16 and length != 2 * numel:
            if length != 4 * numel:
                raise CodecError(f"{numel} bfloat16 numbers are 2 or 4 bytes each, not {length} bytes together")
            return sections.take(torch.float32, numel).to(dtype).view(size)
        if dtype == torch.bool:  # other bytes would be neither true nor false
            octets = sections.take(torch.uint8, numel)
            if numel and int(octets.max()) > 1:
                raise CodecError("a tensor of booleans holds bytes other than 0 and 1")
            return octets.to(dtype).view(size)
        numbers = sections.take(dtype, numel).view(size)
        return numbers if sections.shares_memory else numbers.clone()
