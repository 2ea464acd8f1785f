"""How codecs go through a tensor: in chunks, so that temporaries stay in the cache and are used again.

A chunk is large enough for torch to split each operation among its threads (``torch.set_num_threads``), and chunks are
few: on a busy machine, torch's threads wait for each other after every operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch

CHUNK: Final = 2**18
"""Elements of a chunk."""


def chunks(length: int, *, row: int = 1) -> Iterator[slice]:
    """Slices that cover so many rows, one after the other; a row is never cut, however long."""
    step = max(1, CHUNK // max(1, row))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


class Scratch:
    """Buffers to use again for each chunk; what they held before is lost."""

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, torch.Tensor] = {}

    def __call__(self, dtype: torch.dtype, length: int) -> torch.Tensor:
        """The buffer of this dtype, uninitialized, one-dimensional."""
        buffer = self._buffers.get(dtype)
        if buffer is None or len(buffer) < length:
            buffer = self._buffers[dtype] = torch.empty(length, dtype=dtype, device="cpu")
        return buffer[:length]

    def shifted(self, chunk: torch.Tensor, shift: float) -> torch.Tensor:
        """``chunk - shift`` in float32, whatever the chunk is."""
        buffer = self(torch.float32, len(chunk))
        if chunk.dtype == torch.float32:
            return torch.sub(chunk, shift, out=buffer)
        return buffer.copy_(chunk).sub_(shift)
