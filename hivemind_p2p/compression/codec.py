"""What a codec is, and which dtypes travel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Final, Protocol, runtime_checkable

import torch

from hivemind_p2p.compression.memory import SectionReader
from hivemind_p2p.errors import CodecError

DTYPES: Final[Mapping[str, torch.dtype]] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.uint16, torch.uint32, torch.uint64,
    )
}  # fmt: skip
"""By the name that travels."""
DTYPE_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


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


@runtime_checkable
class EncodesInPieces(Protocol):
    """A codec that needs not have seen all of a tensor before it can send the first of it."""

    def pieces(self, tensor: torch.Tensor, size: int) -> Iterator[bytes]:
        """What ``encode`` gives, in pieces of at most ``size`` bytes, each made when asked for."""

    def count_pieces(self, numel: int, size: int) -> int:
        """How many :meth:`pieces` there are."""


class DecodesAhead(ABC):
    """A codec that needs not have all bytes of a tensor before it can decode the first of them."""

    @abstractmethod
    def decode_some(self, octets: torch.Tensor, into: torch.Tensor, done: int) -> int:
        """Decode what can be decoded behind the first ``done`` elements.

        Args:
            octets: the first bytes of the tensor, uint8, as many as came.
            into: all of its elements, one-dimensional.

        Returns:
            How many elements are done now.

        Raises:
            CodecError: the bytes contradict themselves.
        """

    @abstractmethod
    def total(self, octets: torch.Tensor, numel: int) -> int:
        """How many bytes a tensor is by its own headers, which are there.

        Raises:
            CodecError: they contradict themselves.
        """

    def decode_rest(self, octets: torch.Tensor, into: torch.Tensor, done: int) -> None:
        """:meth:`decode_some` with all bytes.

        Raises:
            CodecError: the bytes contradict themselves, or there are more or fewer than they say.
        """
        check_length(self.total(octets, len(into)), len(octets))
        self.decode_some(octets, into, done)

    def decode(self, sections: SectionReader, size: tuple[int, ...], dtype: torch.dtype, length: int) -> torch.Tensor:
        """See ``Codec``."""
        tensor = torch.empty(size, dtype=dtype, device="cpu")
        self.decode_rest(sections.take(torch.uint8, length), tensor.view(-1), 0)
        return tensor


def check_length(expected: int, length: int) -> None:
    """Refuse bytes whose own header says another number than there are."""
    if expected != length:
        raise CodecError(f"the sections are {expected} bytes by their headers, and {length} came")


FLOATING: Final = frozenset(dtype for dtype in DTYPES.values() if dtype.is_floating_point)
