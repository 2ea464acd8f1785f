"""What a codec is, and which dtypes travel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import torch

from hivemind_p2p.compression.memory import SectionReader

DTYPES: Final[Mapping[str, torch.dtype]] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.uint16, torch.uint32, torch.uint64,
    )
}  # fmt: skip
"""By the name that travels."""


class Codec(Protocol):
    """One way for numbers to travel; knows nothing of messages."""

    writes: frozenset[torch.dtype]
    """What can be encoded such that hivemind reads it."""

    reads: frozenset[torch.dtype]
    """What can be decoded; hivemind may have written it."""

    def encode(self, tensor: torch.Tensor) -> bytes | None:
        """A tensor on the CPU, of any strides, as bytes; None if it should travel as it is.

        The tensor needs no gradient and is not modified.
        """

    def lengths(self, size: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        """The fewest and the most bytes that such a tensor can be."""

    def decode(self, sections: SectionReader, size: tuple[int, ...], dtype: torch.dtype, length: int) -> torch.Tensor:
        """A new tensor, on the CPU, contiguous.

        Raises:
            CodecError: the bytes are not such a tensor. Their number was checked with :meth:`lengths` before.
        """


FLOATING: Final = frozenset(dtype for dtype in DTYPES.values() if dtype.is_floating_point)
