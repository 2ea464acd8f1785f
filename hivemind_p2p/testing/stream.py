"""Streams in memory: what one end writes, the other reads a little later.

A stream is two ends, each with a queue of what has come and was not read. A piece is bytes, or one of the marks below.
A reset overtakes nothing either, but once it has arrived it fails the writer at once, and the reader when it has read
what came before. While nothing gets through, what should have come is held by the connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from hivemind_p2p.errors import ProtocolNotSupported, StreamReset
from hivemind_p2p.transport.api import Stream

if TYPE_CHECKING:
    from hivemind_p2p.testing.connection import MemoryConnection

WINDOW: Final = 2**18
"""Bytes that may be on their way or unread before a writer has to wait: Yamux's window, when it has not grown."""


class Mark(Enum):
    """What arrives besides bytes."""

    ACCEPTED = auto()
    END = auto()


class MemoryStream(Stream):
    """One end of a stream; :meth:`pair` makes both."""

    other: MemoryStream

    def __init__(self, connection: MemoryConnection, protocol: str) -> None:
        self.peer_id = connection.peer_id
        self.protocol = protocol
        self.serving: trio.CancelScope | None = None
        """Around the handler that serves it, if one does."""
        self._connection = connection
        self._incoming: deque[bytes | Mark] = deque()
        self._unread = 0
        self.last_arrival = 0.0
        self._said_at = -1.0
        self._refused = self._was_reset = self._ended = self._closed = False
        self._reading = self._writing = False
        self._changed: trio.Event | None = None
        self._when_readable: Callable[[], object] | None = None

    @classmethod
    def pair(cls, connection: MemoryConnection, protocol: str) -> tuple[MemoryStream, MemoryStream]:
        """The two ends of a stream on ``connection``: ours and the peer's."""
        ours, theirs = cls(connection, protocol), cls(connection.other, protocol)
        ours.other, theirs.other = theirs, ours
        connection.streams[ours] = connection.other.streams[theirs] = None
        return ours, theirs

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._begin_writing()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            rest = memoryview(data).cast("B")
            while rest:
                size = min(len(rest), await self._window())
                self._send(bytes(rest[:size]))
                rest = rest[size:]
        finally:
            self._writing = False

    async def wait_send_all_might_not_block(self) -> None:
        self._begin_writing()
        try:
            await trio.lowlevel.checkpoint()
            await self._window()
        finally:
            self._writing = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        if self._reading:
            raise trio.BusyResourceError(f"another task is reading from the stream to {self.peer_id}")
        self._reading = True
        try:
            if self._incoming:
                await trio.lowlevel.checkpoint()
            piece = await self._next()
            if isinstance(piece, Mark):
                return b""
            if max_bytes is None or len(piece) <= max_bytes:
                self._incoming.popleft()
            else:
                self._incoming[0] = piece[max_bytes:]
                piece = piece[:max_bytes]
            self._unread -= len(piece)
            self.other.poke()
            return piece
        finally:
            self._reading = False

    async def send_eof(self) -> None:
        self._begin_writing(may_have_ended=True)
        self._writing = False
        self._check_writable()
        if not self._ended:
            self._ended = True
            self._send(Mark.END)
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        if not self._closed:
            # Having seen our end, the peer can read all that we wrote.
            self.post(partial(self.other._reset_came, ended=not self._ended))
            self._throw_away()

    def when_readable(self, callback: Callable[[], object] | None) -> None:
        self._when_readable = callback
        self._tell_readable()

    async def reset(self) -> None:
        self.throw_away()

    def throw_away(self) -> None:
        """:meth:`reset`, which has nothing to wait for."""
        if not self._closed:
            self.post(self.other._reset_came)
            self._throw_away()

    # The connection calls these.

    async def agree(self) -> None:
        """Wait for the peer's word on the protocol.

        Raises:
            ProtocolNotSupported, StreamReset, ConnectionLost
        """
        await self._next()
        self._incoming.popleft()

    def accept(self) -> None:
        """Say the word that the peer waits for."""
        self._send(Mark.ACCEPTED)

    def refuse(self) -> None:
        """We do not speak this protocol."""
        self.post(self.other._refusal_came)
        self._throw_away()

    def post(self, arrive: Callable[[], None]) -> None:
        """Have something arrive at the other end: never before what we said last, and with it if that was just now."""
        other, now = self.other, trio.current_time()
        if not other._closed:
            if now != self._said_at:
                other.last_arrival = max(other.last_arrival, now + self._connection.world.travel_time())
                self._said_at = now
            self._connection.send(other.last_arrival, arrive)

    def poke(self) -> None:
        """Something changed that our reader or our writer may wait for."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        self._tell_readable()

    def _tell_readable(self) -> None:
        if self._when_readable is not None and (
            self._incoming or self._refused or self._was_reset or self._connection.closed
        ):
            callback, self._when_readable = self._when_readable, None
            callback()

    def __repr__(self) -> str:
        return f"<MemoryStream {self.protocol} to {self.peer_id!r}, {'closed' if self._closed else 'open'}>"

    def _send(self, piece: bytes | Mark) -> None:
        if isinstance(piece, bytes):
            self.other._unread += len(piece)
            self._connection.bytes_sent += len(piece)
        self.post(partial(self.other._came, piece))

    def _came(self, piece: bytes | Mark) -> None:
        if not self._closed:
            self._incoming.append(piece)
            self.poke()

    def _reset_came(self, *, ended: bool = False) -> None:
        if not self._closed:
            if ended:
                self._incoming.append(Mark.END)
            self._was_reset = True
            self.poke()

    def _refusal_came(self) -> None:
        self._refused = True
        self._connection.known.discard(self.protocol)
        self.poke()

    def _throw_away(self) -> None:
        self._closed = self._ended = True
        self._when_readable = None
        self._incoming.clear()
        self._connection.streams.pop(self, None)
        self.poke()
        self.other.poke()

    async def _next(self) -> bytes | Mark:
        """The piece that is to be read next, once it is there."""
        while True:
            if self._closed:
                raise self._closed_here()
            if self._incoming:
                return self._incoming[0]
            self._check_alive()
            await self._change()

    async def _window(self) -> int:
        """How many bytes may be sent; waits until there are some."""
        while True:
            self._check_writable()
            if self.other._unread < WINDOW:
                return WINDOW - self.other._unread
            await self._change()

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def _check_alive(self) -> None:
        if self._connection.closed:
            raise self._connection.lost()
        if self._refused:
            raise ProtocolNotSupported(
                f"the peer does not speak {self.protocol!r}; check its version and what it serves"
            )
        if self._was_reset:
            raise StreamReset(f"{self.peer_id} threw the stream {self.protocol!r} away")

    def _check_writable(self) -> None:
        if self._closed:
            raise self._closed_here()
        self._check_alive()

    def _begin_writing(self, *, may_have_ended: bool = False) -> None:
        if self._writing:
            raise trio.BusyResourceError(f"another task is writing to the stream to {self.peer_id}")
        if self._closed or (self._ended and not may_have_ended):
            raise self._closed_here()
        self._writing = True

    def _closed_here(self) -> trio.ClosedResourceError:
        return trio.ClosedResourceError(f"this stream to {self.peer_id} was closed here")
