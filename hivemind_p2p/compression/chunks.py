"""How codecs go through a tensor: on one thread, in chunks.

A chunk's temporaries stay in the cache, and torch does not split an operation on so few elements among its threads.
These wait for each other after every operation: for 15 ms instead of 3 us where all cores have work, as those of a
server that computes on its CPU have. Tensors are the unit of parallel work: torch lets go of Python's lock, so that
calls from several threads use several cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch

CHUNK: Final = 7 * 2**12
"""Elements of a chunk: below 2**15, from which on torch uses its threads."""


def chunks(*tensors: torch.Tensor, row: int = 1) -> Iterator[tuple[torch.Tensor, ...]]:
    """Go through tensors of one length together: as many of their rows at once as make a chunk, and at least one.

    Args:
        row: elements of a row, of the tensor that has most.
    """
    rows = max(1, CHUNK // max(1, row))
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


def convert(source: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """Fill a one-dimensional tensor with the elements of another, whatever their dtypes are."""
    for chunk, converted in chunks(source, into):
        converted.copy_(chunk)
    return into


class Scratch:
    """Buffers to use again for each chunk; what they held before is lost."""

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, torch.Tensor] = {}

    def __call__(self, dtype: torch.dtype, length: int) -> torch.Tensor:
        """The buffer of this dtype, uninitialized, one-dimensional."""
        buffer = self._buffers.get(dtype)
        if buffer is None or len(buffer) < length:
            buffer = self._buffers[dtype] = torch.empty(length, dtype=dtype, device="cpu")
        return buffer if len(buffer) == length else buffer[:length]


class Scale:
    """``(chunk - shift) * scale`` in float32, as precise as float32 elements are."""

    def __init__(self, shift: float, scale: float) -> None:
        self._offset = torch.tensor(-shift * scale, dtype=torch.float32, device="cpu")
        self._scale = scale

    def __call__(self, chunk: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Into a float32 buffer of the chunk's length."""
        if chunk.dtype != torch.float32:
            chunk = out.copy_(chunk)
        return torch.add(self._offset, chunk, alpha=self._scale, out=out)
