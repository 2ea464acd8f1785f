"""``ExpertRequest`` and ``ExpertResponse`` (``runtime.proto``), written and read by hand. Pure.

What they carry may be megabytes. protobuf's own classes copy that four times on its way out and three times on its way
in; here it goes out as the memory that it lies in, and comes in as a part of the bytes that came. The bytes on the wire
are protobuf's: a tensor's buffer stands behind its other fields, which readers take in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Self, TypeAlias

from google.protobuf.message import DecodeError

from hivemind_p2p.errors import ProtocolViolation
from hivemind_p2p.wire.framing import read_varint, varint

Buffer: TypeAlias = bytes | bytearray | memoryview

_UID, _TENSORS, _METADATA = 1, 2, 3  # ExpertRequest, ExpertResponse
_BUFFER, _SIZE, _REQUIRES_GRAD, _DTYPE, _COMPRESSION, _CHUNKS = 1, 2, 3, 4, 5, 6  # Tensor
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_INT32: Final = 2**32
MAX_FIELDS: Final = 2**13
"""Of one message; reading more would keep the loop busy. hivemind's have as many as there are tensors, and a few."""
MAX_DIMENSIONS: Final = 1024


@dataclass
class TensorMessage:
    """A ``Tensor``: a whole one, or a part; its fields are those of ``runtime_pb2.Tensor``."""

    buffer: Buffer = b""
    size: tuple[int, ...] = ()
    requires_grad: bool = False
    dtype: str = ""
    compression: int = 0
    chunks: int = 0

    def head(self) -> bytes:
        """All of it but the bytes of the buffer, which follow."""
        fields = bytearray()
        if self.size:
            packed = b"".join(map(varint, self.size))
            fields += _length_head(_SIZE, len(packed)) + packed
        for number, value in (
            (_REQUIRES_GRAD, int(self.requires_grad)),
            (_COMPRESSION, self.compression),
            (_CHUNKS, self.chunks),
        ):
            if value:
                fields += bytes([number << 3 | _VARINT]) + varint(value)
        if self.dtype:
            dtype = self.dtype.encode()
            fields += _length_head(_DTYPE, len(dtype)) + dtype
        if len(self.buffer):
            fields += _length_head(_BUFFER, len(self.buffer))
        return bytes(fields)

    @classmethod
    def parse(cls, data: memoryview) -> Self:
        """Read one; its buffer is a part of ``data``. Raises ``DecodeError``."""
        tensor, size = cls(), list[int]()
        for number, value in _fields(data):
            if isinstance(value, int):
                if number == _SIZE:
                    size.append(value % _INT32)
                elif number == _REQUIRES_GRAD:
                    tensor.requires_grad = bool(value)
                elif number == _COMPRESSION:
                    tensor.compression = _signed(value)
                elif number == _CHUNKS:
                    tensor.chunks = _signed(value)
            elif number == _BUFFER:
                tensor.buffer = value
            elif number == _DTYPE:
                tensor.dtype = _text(value)
            elif number == _SIZE:
                size += _packed(value)
        tensor.size = tuple(size)
        return tensor


@dataclass
class ExpertMessage:
    """A request, or a response: that has no uid."""

    uid: str = ""
    tensors: list[TensorMessage] = field(default_factory=list)
    metadata: bytes = b""

    def pieces(self) -> list[Buffer]:
        """Its bytes, in several pieces; the buffers of the tensors are not copied."""
        head = bytearray()
        if self.uid:
            uid = self.uid.encode()
            head += _length_head(_UID, len(uid)) + uid
        if self.metadata:
            head += _length_head(_METADATA, len(self.metadata)) + self.metadata
        pieces: list[Buffer] = []
        for tensor in self.tensors:
            fields = tensor.head()
            head += _length_head(_TENSORS, len(fields) + len(tensor.buffer)) + fields
            if len(tensor.buffer):
                pieces += [bytes(head), tensor.buffer]
                head.clear()
        if head:
            pieces.append(bytes(head))
        return pieces

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """Its bytes."""
        return b"".join(self.pieces())

    @classmethod
    def FromString(cls, data: Buffer) -> Self:  # noqa: N802 - protobuf's name
        """Read one, whose tensors' buffers are parts of ``data``.

        Raises:
            DecodeError: it is none.
        """
        message = cls()
        for number, value in _fields(memoryview(data)):
            if isinstance(value, int):
                continue
            if number == _UID:
                message.uid = _text(value)
            elif number == _TENSORS:
                message.tensors.append(TensorMessage.parse(value))
            elif number == _METADATA:
                message.metadata = bytes(value)
        return message


def _length_head(number: int, length: int) -> bytes:
    return bytes([number << 3 | _BYTES]) + varint(length)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message, numbers and bytes; others are passed over."""
    position, end, left = 0, len(data), MAX_FIELDS
    while position < end:
        left -= 1
        if left < 0:
            raise DecodeError(f"a message has more than {MAX_FIELDS} fields")
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if not number or number >= 2**29:
            raise DecodeError(f"a message has a field with number {number}")
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, value
        elif kind == _BYTES:
            length, position = _varint(data, position)
            if length > end - position:
                raise DecodeError("a field reaches beyond the end of its message")
            yield number, data[position : position + length]
            position += length
        elif kind in (_FIXED32, _FIXED64):
            position += 4 if kind == _FIXED32 else 8
            if position > end:
                raise DecodeError("a field reaches beyond the end of its message")
        else:
            raise DecodeError(f"a message has a field of wire type {kind}")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    if position < len(data) and (byte := data[position]) < 0x80:  # most are one byte
        return byte, position + 1
    try:
        found = read_varint(data, position)
    except ProtocolViolation as error:
        raise DecodeError(str(error)) from None
    if found is None:
        raise DecodeError("a message ends within a number")
    return found


def _packed(data: memoryview) -> list[int]:
    numbers, position = list[int](), 0
    while position < len(data):
        if len(numbers) >= MAX_DIMENSIONS:
            raise DecodeError(f"a tensor has more than {MAX_DIMENSIONS} dimensions")
        number, position = _varint(data, position)
        numbers.append(number % _INT32)
    return numbers


def _signed(value: int) -> int:
    """An int32 as protobuf writes it: negative ones as 64 bits."""
    value %= _INT32
    return value - _INT32 if value >= _INT32 // 2 else value


def _text(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise DecodeError("a text is not UTF-8") from None
