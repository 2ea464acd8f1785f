"""NONE: the numbers as they are, little-endian.

bfloat16 travels as float32, because older hiveminds know nothing else; readers tell by the number of bytes.
``USE_LEGACY_BFLOAT16=0`` in the environment, hivemind's own switch, sends two bytes instead.
"""

from __future__ import annotations

import math
import os

import torch

from hivemind_p2p.compression.chunks import convert
from hivemind_p2p.compression.codec import DTYPES
from hivemind_p2p.compression.memory import SectionReader, SectionWriter, copy_memory
from hivemind_p2p.errors import CodecError


class Raw:
    """Encodes with one copy (of a strided tensor, two); decodes with one, or none if the memory may be the tensor's."""

    writes = reads = frozenset(DTYPES.values())

    def encode(self, tensor: torch.Tensor) -> bytes:
        dtype = tensor.dtype
        if dtype == torch.bfloat16 and os.environ.get("USE_LEGACY_BFLOAT16", "1") != "0":
            dtype = torch.float32
        writer = SectionWriter(tensor.numel() * dtype.itemsize)
        if dtype == tensor.dtype:
            writer.put(tensor.contiguous())
        else:
            convert(tensor.reshape(-1), writer.take(dtype, tensor.numel()))
        return writer.finish()

    def lengths(self, size: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        numel = math.prod(size)
        return numel * dtype.itemsize, numel * (4 if dtype == torch.bfloat16 else dtype.itemsize)

    def decode(self, sections: SectionReader, size: tuple[int, ...], dtype: torch.dtype, length: int) -> torch.Tensor:
        numel = math.prod(size)
        if dtype == torch.bfloat16 and length != 2 * numel:
            if length != 4 * numel:
                raise CodecError(f"{numel} bfloat16 numbers are 2 or 4 bytes each, not {length} bytes together")
            return convert(sections.take(torch.float32, numel), torch.empty(numel, dtype=dtype, device="cpu")).view(
                size
            )
        octets = sections.take(torch.uint8, numel * dtype.itemsize)
        if dtype == torch.bool and numel and int(octets.max()) > 1:  # neither true nor false
            raise CodecError("a tensor of booleans holds bytes other than 0 and 1")
        if sections.shares_memory:
            return octets.view(dtype).view(size)
        tensor = torch.empty(size, dtype=dtype, device="cpu")
        copy_memory(octets, tensor)
        return tensor
