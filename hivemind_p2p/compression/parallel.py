"""How codecs use several cores: a tensor is cut into spans, a thread each; a thread goes through its span in chunks.

A chunk's temporaries stay in the cache, and torch does not split an operation of so few elements among its own threads.
That matters on a busy machine: torch's threads wait for each other after every operation, ours once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import torch

CHUNK: Final = 2**15
"""Elements of a chunk: torch's grain size."""

_LEAST_PER_THREAD: Final = 8 * CHUNK
T = TypeVar("T")


def in_spans(length: int, work: Callable[[slice], T], *, row: int = 1) -> list[T]:
    """Cut a tensor into spans, and work on all of them at once with at most as many threads as torch may use.

    Args:
        length: of the tensor, in rows.
        work: given a span of rows that begins where a chunk does. It must not need the caller's thread.
        row: elements of a row. Rows longer than a chunk stay with the caller: torch can split their operations well.
    """
    threads = min(torch.get_num_threads(), length * row // _LEAST_PER_THREAD) if row <= CHUNK else 1
    if threads <= 1:
        return [work(slice(0, length))]
    chunk = CHUNK // row
    step = -(-length // (threads * chunk)) * chunk
    spans = [slice(start, min(start + step, length)) for start in range(0, length, step)]
    with ThreadPoolExecutor(len(spans), "codec") as pool:
        others = pool.map(work, spans[1:])
        return [work(spans[0]), *others]


def chunks_of(span: slice, *, row: int = 1) -> Iterator[slice]:
    """The chunks of a span, one after the other."""
    chunk = max(1, CHUNK // row)
    return (slice(start, min(start + chunk, span.stop)) for start in range(span.start, span.stop, chunk))


class Scratch:
    """Buffers of one span, used again for each of its chunks; what they held before is lost."""

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, torch.Tensor] = {}

    def __call__(self, dtype: torch.dtype, length: int) -> torch.Tensor:
        """The buffer of this dtype, uninitialized."""
        if dtype not in self._buffers or len(self._buffers[dtype]) < length:
            self._buffers[dtype] = torch.empty(max(length, CHUNK), dtype=dtype, device="cpu")
        return self._buffers[dtype][:length]
