"""Remote calls as hivemind 1.1 writes them (``p2pd.proto``). Pure.

**Unary**: one message each way on a stream of its own, each behind a varint length. **Streams**: items, each behind a
marker byte and 8 bytes of length. A caller ends its items with an *error* item that holds an empty ``RPCError``, and
keeps its half of the stream open: ending that means giving up, in both formats. A callee ends its items by ending its
half.

The unary messages are read and written by hand: what they carry may be megabytes, and is cut from the bytes that came
without being copied. All sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError

from hivemind_p2p.errors import ProtocolViolation
from hivemind_p2p.wire import p2pd_pb2
from hivemind_p2p.wire.framing import Frame, Header, read_varint, varint

CALL_ID_SIZE: Final = 16
MESSAGE_ITEM: Final = 0
ERROR_ITEM: Final = 1
_ITEM_HEADER: Final = 9

_CALL_ID, _CALL, _ANSWER = 1, 3, 4  # PersistentConnectionRequest
_PEER, _METHOD, _DATA = 1, 2, 3  # CallUnaryRequest
_RESPONSE, _ERROR = 1, 2  # CallUnaryResponse
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def protocol_id(method: str, namespace: str | None = None) -> str:
    """The libp2p protocol of a method (``Service.method``), in a namespace or in none."""
    return method if namespace is None else f"{namespace}::{method}"


# Unary


@dataclass(frozen=True)
class UnaryRequest:
    """A call. Its ``peer`` and ``proto`` fields are not here: the connection and the stream know better."""

    call_id: bytes
    data: bytearray


@dataclass(frozen=True)
class UnaryResponse:
    """An answer."""

    call_id: bytes
    data: bytearray


@dataclass(frozen=True)
class UnaryError:
    """The callee's handler failed."""

    call_id: bytes
    text: str


def unary_request_head(call_id: bytes, peer_id: bytes, method: str, size: int) -> bytes:
    """What stands before the ``size`` bytes of a request."""
    call = _callee(peer_id, method) + _field_head(_DATA, size)
    return _message_head(call_id, _CALL, call, size)


@lru_cache(4096)
def _callee(peer_id: bytes, method: str) -> bytes:
    return _bytes_field(_PEER, peer_id) + _bytes_field(_METHOD, method.encode())


def unary_response_head(call_id: bytes, size: int) -> bytes:
    """What stands before the ``size`` bytes of a response."""
    return _message_head(call_id, _ANSWER, _field_head(_RESPONSE, size), size)


def unary_error(call_id: bytes, text: str) -> bytes:
    """The answer of a handler that failed."""
    body = text.encode(errors="replace")
    return _message_head(call_id, _ANSWER, _field_head(_ERROR, len(body)), len(body)) + body


def read_request(body: bytearray) -> UnaryRequest:
    """The call in a frame's body, which is used up.

    Raises:
        ProtocolViolation: there is none.
    """
    call_id, parts = _read(body, _CALL)
    if _DATA not in parts:
        raise ProtocolViolation("a call carries no data")
    return UnaryRequest(call_id, _cut(body, parts[_DATA]))


def read_response(body: bytearray) -> UnaryResponse | UnaryError:
    """The answer in a frame's body, which is used up.

    Raises:
        ProtocolViolation: there is none.
    """
    call_id, parts = _read(body, _ANSWER)
    last = next(reversed(parts), None)  # a oneof: the last one counts
    if last == _RESPONSE:
        return UnaryResponse(call_id, _cut(body, parts[_RESPONSE]))
    if last == _ERROR:
        return UnaryError(call_id, _cut(body, parts[_ERROR]).decode(errors="replace"))
    raise ProtocolViolation("an answer holds neither a response nor an error")


def _message_head(call_id: bytes, kind: int, inner: bytes, size: int) -> bytes:
    outer = _bytes_field(_CALL_ID, call_id) + _field_head(kind, len(inner) + size) + inner
    return varint(len(outer) + size) + outer


def _bytes_field(number: int, value: bytes) -> bytes:
    return _field_head(number, len(value)) + value


def _field_head(number: int, size: int) -> bytes:
    return bytes([number << 3 | _BYTES]) + varint(size)


def _read(body: bytearray, kind: int) -> tuple[bytes, dict[int, slice]]:
    """The call id, and the parts of the message of this kind in the order in which they were last seen."""
    outer = _fields(body, slice(0, len(body)))
    if _CALL_ID not in outer or kind not in outer:
        raise ProtocolViolation("a message is neither a call nor an answer, or has no call id")
    call_id = bytes(body[outer[_CALL_ID]])
    if len(call_id) != CALL_ID_SIZE:
        raise ProtocolViolation(f"a call id has {len(call_id)} bytes instead of {CALL_ID_SIZE}")
    return call_id, _fields(body, outer[kind])


def _fields(body: bytearray, within: slice) -> dict[int, slice]:
    """Where the values of a message's length-delimited fields are; others are passed over."""
    found: dict[int, slice] = {}
    for number, where in _scan(body, within.start, within.stop):
        found.pop(number, None)
        found[number] = where
    return found


def _scan(body: bytearray, position: int, end: int) -> Iterator[tuple[int, slice]]:
    while position < end:
        key, position = _varint(body, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _BYTES:
            size, position = _varint(body, position)
            if number:
                yield number, slice(position, position + size)
            position += size
        elif wire_type == _VARINT:
            _, position = _varint(body, position)
        elif wire_type in (_FIXED32, _FIXED64):
            position += 4 if wire_type == _FIXED32 else 8
        else:
            raise ProtocolViolation(f"a message has a field of wire type {wire_type}")
        if not number:
            raise ProtocolViolation("a message has a field with number 0")
    if position != end:
        raise ProtocolViolation("a field reaches beyond the end of its message")


def _varint(body: bytearray, position: int) -> tuple[int, int]:
    if position < len(body) and (byte := body[position]) < 0x80:  # most are one byte
        return byte, position + 1
    found = read_varint(body, position)
    if found is None:
        raise ProtocolViolation("a message ends within a number")
    return found


def _cut(body: bytearray, where: slice) -> bytearray:
    """Make ``body`` only this part of itself: a bytearray moves no bytes when its ends are deleted."""
    del body[where.stop :]
    del body[: where.start]
    return body


# Streams


@dataclass(frozen=True)
class Item:
    """One message of a stream."""

    data: bytearray


@dataclass(frozen=True)
class ErrorItem:
    """From a callee: its handler failed. From a caller, with an empty text: no more items."""

    text: str


def item_header(data: bytearray) -> Header | None:
    """Before an item: its marker and its length.

    Raises:
        ProtocolViolation: the marker is none of hivemind's.
    """
    if data and data[0] not in (MESSAGE_ITEM, ERROR_ITEM):
        raise ProtocolViolation(f"an item begins with {data[0]:#04x}, which marks neither a message nor an error")
    if len(data) < _ITEM_HEADER:
        return None
    return Header(data[0], int.from_bytes(data[1:_ITEM_HEADER], "big"), _ITEM_HEADER)


def item_head(size: int, marker: int = MESSAGE_ITEM) -> bytes:
    """What stands before the ``size`` bytes of an item."""
    return bytes([marker]) + size.to_bytes(8, "big")


def error_item(text: str) -> bytes:
    """The item of a handler that failed."""
    body = p2pd_pb2.RPCError(message=text.encode(errors="replace") or None).SerializeToString()
    return item_head(len(body), ERROR_ITEM) + body


END_OF_ITEMS: Final = error_item("")


def read_item(frame: Frame) -> Item | ErrorItem:
    """What a frame of a stream says.

    Raises:
        ProtocolViolation: an error that cannot be read.
    """
    if frame.marker == MESSAGE_ITEM:
        return Item(frame.body)
    try:
        return ErrorItem(p2pd_pb2.RPCError.FromString(bytes(frame.body)).message.decode(errors="replace"))
    except DecodeError:
        raise ProtocolViolation("an error item holds no RPCError") from None
