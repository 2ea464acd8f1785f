"""Messages behind their lengths. Pure: bytes in, frames out, and any split of the bytes gives the same frames.

Two framings are on hivemind's wire: a varint length (unary calls), and a marker byte and 8 bytes of big-endian length
(streams of items). A length above the limit is refused before anything is kept, and a frame under way never holds more
than four times the memory of what has come of it: a length alone costs its sender more than us.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from hivemind_p2p.errors import MessageTooLarge, ProtocolViolation, RPCError

_FIRST_ROOM: Final = 2**16
_LONGEST_HEADER: Final = 10


class Frame(NamedTuple):
    """One whole message. ``marker`` is 0 where the framing has none; ``body`` belongs to whoever gets it."""

    marker: int
    body: bytearray


class Header(NamedTuple):
    """What stands before a body: its marker, its length, and how many bytes this took."""

    marker: int
    length: int
    size: int


_ONE_BYTE: Final = [bytes([number]) for number in range(0x80)]

HeaderReader: TypeAlias = Callable[[bytearray], Header | None]
"""Reads a header at the start of some bytes; None: more are needed."""


def varint(number: int) -> bytes:
    """An unsigned number, seven bits per byte, lowest first."""
    if number < 0x80:
        return _ONE_BYTE[number]
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def read_varint(data: bytearray | memoryview, position: int) -> tuple[int, int] | None:
    """The number at ``position``, and where it ends; None when it does not end.

    Raises:
        ProtocolViolation: it has more than 64 bits.
    """
    number = shift = 0
    for index in range(position, len(data)):
        byte = data[index]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >= 2**64:
                break
            return number, index + 1
        shift += 7
        if shift >= 70:
            break
    else:
        return None
    raise ProtocolViolation("a varint has more than 64 bits")


def varint_header(data: bytearray) -> Header | None:
    """Before a unary call's message: its length."""
    found = read_varint(data, 0)
    return None if found is None else Header(0, *found)


class FrameReader:
    """Takes bytes as they come; :meth:`pop` gives the frames.

    Small pieces are given to :meth:`feed`. While a large frame is under way, :meth:`room` is where its next bytes
    belong: fill it and call :meth:`filled`, and they are copied no further.

    Args:
        read_header: which framing.
        limit: the most bytes that a body may have.
    """

    def __init__(self, read_header: HeaderReader, limit: int) -> None:
        self._read_header = read_header
        self._limit = limit
        self._frames: deque[Frame] = deque()
        self._failure: RPCError | None = None
        self._head = bytearray()
        self._marker = self._length = self._have = 0
        self._body: bytearray | None = None

    @property
    def between_frames(self) -> bool:
        """Whether the bytes may end here."""
        return self._body is None and not self._head

    @property
    def pending(self) -> bool:
        """Whether there is more than the frames that were popped: another one, a part of one, or a failure."""
        return bool(self._frames) or self._failure is not None or not self.between_frames

    @property
    def under_way(self) -> int:
        """The length of the body whose header has come, and which has not come to its end; 0 when there is none."""
        return 0 if self._body is None else self._length

    def pop(self) -> Frame | None:
        """The next frame; None while there is none.

        Raises:
            MessageTooLarge: the length of the next frame is above the limit.
            ProtocolViolation: what should be the header of the next frame is none.
        """
        if self._frames:
            return self._frames.popleft()
        if self._failure is not None:
            raise self._failure
        return None

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take some bytes. What comes behind a failure is passed over."""
        rest = memoryview(data)
        while len(rest) and self._failure is None:
            if self._body is None:
                rest = self._feed_header(rest)
            else:
                with memoryview(self._body) as body:
                    size = min(len(rest), len(body) - self._have)
                    body[self._have : self._have + size] = rest[:size]
                self._have += size
                rest = rest[size:]
            self._advance()

    def room(self) -> memoryview | None:
        """Where the next bytes of the frame under way belong; None between frames and within a header.

        Release it before anything else is called here.
        """
        return None if self._body is None else memoryview(self._body)[self._have :]

    def filled(self) -> None:
        """Take note that the whole :meth:`room` was filled."""
        assert self._body is not None
        self._have = len(self._body)
        self._advance()

    def _feed_header(self, rest: memoryview) -> memoryview:
        before = len(self._head)
        self._head += rest[: _LONGEST_HEADER - before]
        try:
            header = self._read_header(self._head)
            if header is None:
                return rest[len(self._head) - before :]
            if header.length > self._limit:
                raise MessageTooLarge(f"a message of {header.length} bytes is above the limit of {self._limit}")
        except RPCError as error:
            self._failure = error
            return rest
        self._head.clear()
        rest = rest[header.size - before :]
        if len(rest) >= header.length:  # a small frame, that has come whole
            self._frames.append(Frame(header.marker, bytearray(rest[: header.length])))
            return rest[header.length :]
        self._marker, self._length, self._have = header.marker, header.length, 0
        self._body = bytearray(min(header.length, _FIRST_ROOM))
        return rest

    def _advance(self) -> None:
        """Make more room once it is used up, or pass on the frame when it is complete."""
        if self._body is None or self._have < len(self._body):
            return
        if self._have < self._length:
            self._body.extend(bytes(min(3 * self._have, self._length - self._have)))
        else:
            self._frames.append(Frame(self._marker, self._body))
            self._body = None
