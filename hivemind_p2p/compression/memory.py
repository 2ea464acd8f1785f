"""Tensors over the memory of ``bytes``, so that a codec reads and writes what travels without copying it first.

A codec's bytes are sections one after the other, little-endian, not aligned. ``SectionWriter`` makes a new bytes object
and hands out tensors over its sections; ``SectionReader`` does so with what a peer sent.
"""

from __future__ import annotations

import ctypes

import torch

from hivemind_p2p.errors import CodecError

# A bytes object may be written to while nobody else has it (C API, PyBytes_FromStringAndSize with NULL).
_new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)
_address_of_bytes = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyBytes_AsString", ctypes.pythonapi))


class _Sections:
    """Walks over memory; the tensors handed out are good only while this object lives."""

    def __init__(self, memory: bytes | bytearray, length: int) -> None:
        self._owner = memory
        self._length = length
        self._offset = 0
        if isinstance(memory, bytes):  # torch refuses to look at bytes without a warning; readers do not write to them
            self._memory: object = (ctypes.c_char * length).from_address(_address_of_bytes(memory))
        else:
            self._memory = memory

    def take(self, dtype: torch.dtype, count: int) -> torch.Tensor:
        """The next ``count`` elements, one-dimensional.

        Raises:
            CodecError: there are fewer.
        """
        length = count * dtype.itemsize
        if count < 0 or length > self._length - self._offset:
            raise CodecError(f"a section of {length} bytes does not fit into the {self._length} bytes that there are")
        if count == 0:
            return torch.empty(0, dtype=dtype, device="cpu")
        section = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=self._offset)
        self._offset += length
        return section


class SectionReader(_Sections):
    """Over what was received: all of it, or its first ``length`` bytes."""

    def __init__(self, memory: bytes | bytearray, length: int | None = None) -> None:
        super().__init__(memory, len(memory) if length is None else length)

    @property
    def writable(self) -> bool:
        """Whether the memory may become a tensor's own: nobody else has it, and the tensors over it keep it alive."""
        return isinstance(self._owner, bytearray)

    def take_int64(self) -> int:
        """The next eight bytes as a number."""
        return int(self.take(torch.int64, 1).item())


class SectionWriter(_Sections):
    """Over a new bytes object, which :meth:`finish` gives away."""

    def __init__(self, length: int) -> None:
        super().__init__(_new_bytes(None, length), length)

    def put_int64(self, value: int) -> None:
        """Write a number as eight bytes."""
        self.take(torch.int64, 1).fill_(value)

    def finish(self) -> bytes:
        """The bytes, every section of which was written; do not write to the tensors any more."""
        assert isinstance(self._owner, bytes)
        assert self._offset == self._length, "a codec left bytes unwritten"
        return self._owner
