"""One stream of a :class:`~.muxer.YamuxMuxer`: what its owner reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from hivemind_p2p.errors import StreamEnded, StreamReset
from hivemind_p2p.transport.muxer import MuxedStream
from hivemind_p2p.transport.yamux.frames import SYN
from hivemind_p2p.transport.yamux.receive_queue import ReceiveQueue
from hivemind_p2p.transport.yamux.stream_state import StreamState

if TYPE_CHECKING:
    from hivemind_p2p.transport.yamux.muxer import YamuxMuxer


class YamuxStream(MuxedStream):
    """A stream. Made by its muxer, which also calls what is marked so below."""

    def __init__(self, muxer: YamuxMuxer, state: StreamState) -> None:
        self.peer_id = muxer.peer_id
        self.protocol = ""
        self.state = state
        self._muxer = muxer
        self._queue = ReceiveQueue()
        self._target: memoryview | None = None
        """What is left of the buffer that a reader wants to have filled."""
        self._overflowed = False
        self._closed = False
        self._reading = False
        self._writing = False
        self._when_readable: Callable[[], object] | None = None
        """Wakes the reader, or whoever wants to know."""
        self._writable: trio.Event | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._begin_writing()
        try:
            rest = memoryview(data)
            rest = rest if rest.format == "B" and rest.ndim == 1 else rest.cast("B")
            if not rest:
                await trio.lowlevel.checkpoint()
            while rest:
                await self._window()
                rest = rest[await self._muxer.send(self.state, rest) :]
                if self._closed:
                    raise self._closed_here()
        finally:
            self._writing = False

    def send_nowait(self, data: bytes | bytearray, *, last: bool = False) -> bool:
        self._begin_writing()
        self._writing = False
        self._check_writable()
        if not self._muxer.send_nowait(self.state, data):
            return False
        if last:
            self.close()  # flushes
        else:
            self._muxer.flush()
            self._muxer.check()
        return True

    def send_first(self, data: bytes) -> None:
        self._muxer.session.send(self.state, memoryview(data))
        self._muxer.flush()

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
        self._begin_reading()
        try:
            if self._queue.size:  # only the reader of the connection adds to it: who takes what is there ends soon
                await trio.lowlevel.checkpoint_if_cancelled()
            elif not await self._data():
                return b""
            data = self._queue.take(max_bytes)
            self._consumed(len(data))
            return data
        finally:
            self._reading = False

    def receive_nowait(self, max_bytes: int) -> bytes:
        self._begin_reading()
        self._reading = False
        if not self._queue.size:
            return b""
        data = self._queue.take(max_bytes)
        self._consumed(len(data))
        return data

    def when_readable(self, callback: Callable[[], object] | None) -> None:
        self._begin_reading()
        self._reading = False
        self._when_readable = callback
        if self._queue.size or self.state.remote_ended or not self.state.open or self._muxer.is_lost:
            self._wake_reader()

    async def read_into(self, buffer: memoryview) -> None:
        self._begin_reading()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            target = memoryview(buffer).cast("B")
            expected = len(target)
            while target:
                self._target = target
                more = await self._data()
                target = self._target
                if not more:
                    filled = expected - len(target)
                    raise StreamEnded(f"{self.peer_id} ended the stream {filled} bytes into an expected {expected}")
                if size := self._queue.take_into(target):
                    target = target[size:]
                    self._consumed(size)
        finally:
            self._target = None
            self._reading = False

    async def send_eof(self) -> None:
        self._begin_writing(may_have_ended=True)
        try:
            if not self.state.ended:
                self._check_writable()
                self._muxer.session.end(self.state)
                self._muxer.flush()
            await trio.lowlevel.checkpoint()
        finally:
            self._writing = False

    def close(self) -> None:
        if not self._closed:
            nobody_waits = self.state.remote_ended
            self._muxer.session.close(self.state)
            self._is_closed(urgent=not nobody_waits)

    async def reset(self) -> None:
        self.throw_away()

    def throw_away(self) -> None:
        if not self._closed:
            self._muxer.session.reset(self.state)
            self._is_closed(urgent=True)

    def _is_closed(self, *, urgent: bool) -> None:
        self._closed = True
        self._queue.clear()
        self._muxer.discard(self)
        if urgent:
            self._muxer.flush()
        else:
            self._muxer.flush_soon()
        if self._reading:
            self._wake_reader()
        self._when_readable = None
        if self._writable is not None:
            self._writable.set()

    # The muxer calls these.

    def data_received(self, data: memoryview) -> None:
        """The peer sent something."""
        self._queue.append(data)
        self._wake_reader()

    def room(self, size: int) -> memoryview | None:
        """Where the next bytes may be written to, since a reader waits for no less and nothing lies before them."""
        target = self._target
        return None if target is None or self._queue.size or len(target) < size else target[:size]

    def filled(self, size: int) -> None:
        """The :meth:`room` for so many bytes was written to."""
        assert self._target is not None
        self._target = self._target[size:]
        self._wake_reader()

    def window_opened(self) -> None:
        """More can be sent."""
        if self._writable is not None:
            self._writable.set()

    def peer_finished(self) -> None:
        """The peer ended or reset the stream; ``state`` tells which."""
        self._wake()

    def overflowed(self) -> None:
        """It was reset, since too much of the connection's data lies unread."""
        self._overflowed = True
        self._queue.clear()
        self._wake()

    def connection_lost(self) -> None:
        """Nothing will come any more."""
        self._wake()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self.state.open and not self._muxer.is_lost else "over"
        return f"<Stream {self.state.id}, {self.protocol or 'no protocol yet'}, to {self.peer_id!r}, {state}>"

    def _begin_reading(self) -> None:
        if self._reading:
            raise trio.BusyResourceError(f"another task is reading from the stream to {self.peer_id}")
        if self._closed:
            raise self._closed_here()
        self._reading = True

    def _begin_writing(self, *, may_have_ended: bool = False) -> None:
        if self._writing:
            raise trio.BusyResourceError(f"another task is writing to the stream to {self.peer_id}")
        if self._closed or (self.state.ended and not may_have_ended):
            raise self._closed_here()
        self._writing = True

    def _closed_here(self) -> trio.ClosedResourceError:
        return trio.ClosedResourceError(f"this stream to {self.peer_id} was closed here")

    async def _data(self) -> bool:
        """Wait until there is something to read, or was written to ``_target``; False when the peer has ended and all
        was read."""
        target = self._target
        while not self._queue.size and self._target is target:
            if self._closed:
                raise self._closed_here()
            if self.state.remote_ended:
                await trio.lowlevel.checkpoint_if_cancelled()
                return False
            if self._muxer.is_lost:
                raise self._muxer.lost()
            if not self.state.open:
                raise self._thrown_away()
            if self.state.opening == SYN:  # whoever waits for the peer's first word must let it know of the stream
                self._muxer.session.announce(self.state)
                self._muxer.flush()
            self._when_readable = partial(trio.lowlevel.reschedule, trio.lowlevel.current_task())
            await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
        return True

    def _stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        self._when_readable = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _consumed(self, size: int) -> None:
        self._muxer.session.consumed(self.state, size, trio.current_time())
        self._muxer.flush()

    async def _window(self) -> None:
        """Wait until something may be sent."""
        while True:
            self._check_writable()
            if self.state.send_window > 0:
                return
            self._writable = trio.Event()
            await self._writable.wait()

    def _check_writable(self) -> None:
        if self._closed:
            raise self._closed_here()
        self._muxer.check()
        if not self.state.open:
            raise self._thrown_away()

    def _thrown_away(self) -> StreamReset:
        if self._overflowed:
            return StreamReset(
                f"too much of what {self.peer_id} sent lies unread (transport.max_unread); this stream to it was reset"
            )
        return StreamReset(f"{self.peer_id} threw the stream {self.protocol!r} away")

    def _wake(self) -> None:
        self._wake_reader()
        if self._writable is not None:
            self._writable.set()

    def _wake_reader(self) -> None:
        wake, self._when_readable = self._when_readable, None
        if wake is not None:
            wake()
