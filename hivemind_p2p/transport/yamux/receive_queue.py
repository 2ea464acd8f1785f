"""What was received on one stream and not read yet. Pure.

Large pieces are kept as they are, as views of what was decrypted. Small ones are copied together: a view costs more
memory than it holds then, and may keep alive a large message of which it is a small part, so that a peer who sends
single bytes could make us hold a hundred times of what its window says.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_KEPT_FROM: Final = 4096
"""Pieces of this size and above are kept as views, if they are at least half of the message that they are part of."""
_LARGEST_COLLECTION: Final = 64 * 1024


class ReceiveQueue:
    """Bytes in order, in as few pieces as sensible."""

    __slots__ = ("_pieces", "size")

    def __init__(self) -> None:
        self._pieces: deque[memoryview | bytearray] | None = None  # an empty deque is 600 bytes for every idle stream
        self.size = 0
        """Bytes in it."""

    def append(self, piece: memoryview) -> None:
        """Take in what came."""
        size = len(piece)
        if not size:
            return
        self.size += size
        if self._pieces is None:
            self._pieces = deque()
        if (size >= _KEPT_FROM or not self._pieces) and 2 * size >= _size_of_base(piece):
            self._pieces.append(piece)
            return
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, bytearray) and len(last) < _LARGEST_COLLECTION:
            last += piece
        else:
            self._pieces.append(bytearray(piece))

    def take(self, most: int | None = None) -> bytes:
        """Remove at most ``most`` bytes and return them; all that can be had without joining pieces for None."""
        if self._pieces is None:
            return b""
        first = self._pieces[0]
        if most is None or len(first) <= most:
            del self._pieces[0]
        else:
            rest = memoryview(first)
            first, self._pieces[0] = rest[:most], rest[most:]
        self.size -= len(first)
        if not self._pieces:
            self._pieces = None
        return bytes(first)

    def take_into(self, target: memoryview) -> int:
        """Move bytes to the beginning of ``target``; how many."""
        filled = 0
        while self._pieces is not None and filled < len(target):
            first = memoryview(self._pieces[0])
            part = first[: len(target) - filled]
            target[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(first):
                self._pieces[0] = first[len(part) :]
            else:
                del self._pieces[0]
                if not self._pieces:
                    self._pieces = None
        self.size -= filled
        return filled

    def clear(self) -> None:
        """Drop all of it."""
        self._pieces = None
        self.size = 0

    def __repr__(self) -> str:
        return f"<ReceiveQueue of {self.size} bytes in {len(self._pieces or ())} pieces>"


def _size_of_base(piece: memoryview) -> int:
    base = piece.obj
    return len(base) if isinstance(base, (bytes, bytearray)) else len(piece)
