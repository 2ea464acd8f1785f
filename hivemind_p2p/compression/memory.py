"""Tensors over the memory of what travels, so that a codec reads and writes it without copying it first.

A codec's bytes are sections one after the other, little-endian. ``SectionWriter`` makes a new bytes object and hands
out tensors over its sections; ``SectionReader`` does so with what a peer sent.
"""

from __future__ import annotations

import ctypes

import torch

from hivemind_p2p.errors import CodecError
from hivemind_p2p.wire.expert_messages import Buffer

# A bytes object may be written to while nobody else has it (C API, PyBytes_FromStringAndSize with NULL).
_new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)
_address_of_bytes = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyBytes_AsString", ctypes.pythonapi))


def octets_of(memory: Buffer) -> torch.Tensor:
    """The bytes as a tensor, which is good only while they live."""
    if not len(memory):
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    if isinstance(memory, bytes):  # torch itself would warn that they are read-only
        memory = (ctypes.c_char * len(memory)).from_address(_address_of_bytes(memory))  # type: ignore[assignment]
    elif memoryview(memory).readonly:
        memory = bytearray(memory)
    return torch.frombuffer(memory, dtype=torch.uint8)


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, where they are; they keep it alive."""
    octets = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()) if tensor.nbytes else bytearray()
    if tensor.nbytes:
        octets.tensor = tensor  # type: ignore[union-attr]  # not known to ctypes, which lets us
    return memoryview(octets).cast("B")


def copy_memory(source: torch.Tensor, into: torch.Tensor) -> None:
    """Copy all of a contiguous tensor; neither torch's threads nor Python's lock are involved."""
    assert source.is_contiguous()
    assert into.is_contiguous()
    assert source.nbytes == into.nbytes
    ctypes.memmove(into.data_ptr(), source.data_ptr(), into.nbytes)


class SectionReader:
    """Over what was received.

    Args:
        memory: bytes of some kind, whose tensors are good only while this object lives and must not be written to; or
            a uint8 tensor that nobody else needs, whose memory the tensors share.
    """

    def __init__(self, memory: Buffer | torch.Tensor) -> None:
        self._memory = memory
        self._octets = memory if isinstance(memory, torch.Tensor) else octets_of(memory)
        self._offset = 0
        self.shares_memory = isinstance(memory, torch.Tensor)
        """Whether a section may be the decoded tensor itself."""

    def take(self, dtype: torch.dtype, count: int) -> torch.Tensor:
        """The next ``count`` elements, one-dimensional.

        Raises:
            CodecError: there are fewer.
        """
        end = self._offset + count * dtype.itemsize
        if count < 0 or end > len(self._octets):
            raise CodecError(f"a section of {count} elements does not fit into the {len(self._octets)} bytes that came")
        section = self._octets[self._offset : end]
        if self._offset % dtype.itemsize:  # torch looks at aligned memory only
            section = section.clone()
        self._offset = end
        return section.view(dtype)

    def take_int64(self) -> int:
        """The next eight bytes as a number."""
        return int(self.take(torch.int64, 1).item())


class SectionWriter:
    """Over a new bytes object of a certain length, which :meth:`finish` gives away."""

    def __init__(self, length: int) -> None:
        self._bytes: bytes = _new_bytes(None, length)
        self._octets = octets_of(self._bytes)
        self._offset = 0

    def take(self, dtype: torch.dtype, count: int) -> torch.Tensor:
        """The next ``count`` elements to write to, one-dimensional; they must begin at a multiple of their size."""
        start, self._offset = self._offset, self._offset + count * dtype.itemsize
        return self._octets[start : self._offset].view(dtype)

    def put(self, section: torch.Tensor) -> None:
        """Write a contiguous tensor, wherever that is."""
        copy_memory(section, self.take(torch.uint8, section.nbytes))

    def put_int64(self, value: int) -> None:
        """Write a number as eight bytes."""
        self.take(torch.int64, 1).fill_(value)

    def finish(self) -> bytes:
        """The bytes, every section of which was written; do not write to the tensors any more."""
        assert self._offset == len(self._bytes), "a codec left bytes unwritten"
        return self._bytes
