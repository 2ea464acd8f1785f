"""libp2p's own Yamux behind our :class:`~hivemind_p2p.transport.muxer.Muxer` and ``Stream``.

What the stock code gets wrong, and what is done about it here:

- A cancelled write leaves half a frame, which kills the connection. So a caller waits for window space and for data
  where it can be cancelled; every frame is written behind a shield. The shield is bounded: a connection that takes no
  byte for ``write_timeout`` is given up.
- Waiting more than 5 s for window space fails the stream. So we wait for it ourselves, as long as the caller likes.
- Every small read sends a window update. So whatever is there is read at once and kept.
- A reset and a lost connection read as a clean end. So the stream's flags are looked at.
- Opening more than 256 streams hangs inside a task that cannot be told apart. So we count, and wait cancellably.
- Closing sleeps 0.1 s. So it is taken down by hand.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.stream_muxer.yamux.yamux import (
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    TYPE_GO_AWAY,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)

from hivemind_p2p.errors import ConnectionLost, StreamReset
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.transport.muxer import Muxer
from hivemind_p2p.wire.peer_id import PeerID

T = TypeVar("T")
_BROKEN: Final = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)
_LARGEST_FRAME: Final = MAX_MESSAGE_SIZE - HEADER_SIZE
_POLL: Final = 0.01  # stock Yamux has no event for window space
_GOODBYE: Final = 1.0


class StockMuxer(Muxer):
    """Streams over libp2p's ``Yamux``.

    Args:
        yamux: not started yet.
        peer_id: who is at the other end.
        max_streams: streams that we may hold open; at most 256.
        write_timeout: seconds without a byte going out after which the connection is given up.
    """

    def __init__(self, yamux: Yamux, peer_id: PeerID, *, max_streams: int, write_timeout: float) -> None:
        self.peer_id = peer_id
        self._yamux = yamux
        self._write_timeout = write_timeout
        self.slots = trio.Semaphore(max_streams)
        self._closing = False

    @property
    def closed(self) -> bool:
        return self._closing or self._yamux.event_shutting_down.is_set()

    @property
    def stream_count(self) -> int:
        return len(self._yamux.streams)

    async def run(self) -> None:
        try:
            await self._yamux.start()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _GOODBYE):
                await self.aclose()

    async def open_stream(self) -> Stream:
        await self._yamux.event_started.wait()
        await self.slots.acquire()
        try:
            stream = await self.framed(self._yamux.open_stream)
        except BaseException:
            self.slots.release()
            raise
        return StockStream(self, stream, owns_slot=True)

    async def accept_stream(self) -> Stream:
        try:
            stream = await self._yamux.accept_stream()
        except (MuxedConnUnavailable, trio.ClosedResourceError):
            raise self.lost() from None
        assert isinstance(stream, YamuxStream)
        return StockStream(self, stream, owns_slot=False)

    async def aclose(self) -> None:
        if self._closing:
            return
        self._closing = True
        with trio.CancelScope(shield=True):
            if not self._yamux.event_shutting_down.is_set():
                with trio.move_on_after(_GOODBYE):
                    with suppress(*_BROKEN):  # the peer was faster
                        await self._yamux._write_frame(struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_GO_AWAY, 0, 0, 0))
            with trio.move_on_after(_GOODBYE):
                await self._yamux._cleanup_on_error()

    def lost(self) -> ConnectionLost:
        """The error for whoever used the connection when it went away."""
        return ConnectionLost(f"the connection to {self.peer_id} is gone; call again to connect anew")

    async def framed(self, operation: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run a stock operation that writes at most one frame, to its end even when the caller is cancelled.

        Raises:
            ConnectionLost
        """
        with trio.CancelScope(shield=True), trio.move_on_after(self._write_timeout):
            try:
                return await operation(*args)
            except (*_BROKEN, KeyError):
                await self.aclose()
                raise self.lost() from None
        await self.aclose()
        raise ConnectionLost(
            f"the connection to {self.peer_id} took no byte for {self._write_timeout:g} s and was given up; "
            "call again to connect anew"
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._yamux.streams)} streams"
        return f"<StockMuxer to {self.peer_id!r}, {state}>"


class StockStream(Stream):
    """One stream of a :class:`StockMuxer`."""

    def __init__(self, muxer: StockMuxer, stream: YamuxStream, *, owns_slot: bool) -> None:
        self.peer_id = muxer.peer_id
        self.protocol = ""
        self._muxer = muxer
        self._stream = stream
        self._owns_slot = owns_slot
        self._buffer = bytearray()
        self._ended = self._eof_sent = self._closed = False
        self._wake = trio.Event()
        self._reading = trio.Lock()
        self._writing = trio.Lock()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._enter(self._writing)
        try:
            if self._closed or self._eof_sent:
                raise trio.ClosedResourceError(f"this stream to {self.peer_id} was closed for writing")
            await trio.lowlevel.checkpoint()
            view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
            position = 0
            while position < len(view):
                size = min(await self._window(), _LARGEST_FRAME, len(view) - position)
                await self._muxer.framed(self._stream.write, bytes(view[position : position + size]))
                position += size
        finally:
            self._writing.release()

    async def wait_send_all_might_not_block(self) -> None:
        self._enter(self._writing)
        try:
            await self._window()
        finally:
            self._writing.release()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self._enter(self._reading)
        try:
            if self._closed:
                raise trio.ClosedResourceError(f"this stream to {self.peer_id} was closed")
            await trio.lowlevel.checkpoint()
            if not self._buffer and not self._ended:
                await self._fill()
            size = len(self._buffer) if max_bytes is None else min(max_bytes, len(self._buffer))
            data = bytes(self._buffer[:size])
            del self._buffer[:size]
            return data
        finally:
            self._reading.release()

    async def send_eof(self) -> None:
        self._enter(self._writing)
        try:
            if self._closed:
                raise trio.ClosedResourceError(f"this stream to {self.peer_id} was closed")
            if not self._eof_sent:
                self._check()
                self._eof_sent = True
                await self._finish()
        finally:
            self._writing.release()

    async def aclose(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            if not self._dead():
                if not self._eof_sent:
                    self._eof_sent = True
                    await self._finish()
                if not (self._ended or self._stream.recv_closed):
                    # Nobody will read what still comes. Having seen our end, the peer can read all that we wrote.
                    await self._muxer.framed(self._stream.reset)
        except ConnectionLost:
            pass  # closed all the same
        finally:
            self._release()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        closed, self._closed = self._closed, True
        try:
            if not closed and not self._dead():
                await self._muxer.framed(self._stream.reset)
        except ConnectionLost:
            pass  # gone all the same
        finally:
            self._release()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "reset" if self._stream.reset_received else "open"
        return f"<Stream {self.protocol or '?'} to {self.peer_id!r}, {state}>"

    async def _finish(self) -> None:
        await self._muxer.framed(self._stream.close)

    def _release(self) -> None:
        self._wake.set()
        if self._owns_slot:
            self._owns_slot = False
            self._muxer.slots.release()

    def _enter(self, lock: trio.Lock) -> None:
        try:
            lock.acquire_nowait()
        except trio.WouldBlock:
            raise trio.BusyResourceError(f"another task is using this half of the stream to {self.peer_id}") from None

    def _dead(self) -> bool:
        return self._muxer.closed or self._stream.reset_received

    def _check(self) -> None:
        if self._muxer.closed:
            raise self._muxer.lost()
        if self._stream.reset_received:
            raise StreamReset(f"{self.peer_id} threw the stream {self.protocol!r} away")

    async def _window(self) -> int:
        """Bytes that may be sent now; waits until there are some."""
        while True:
            if self._closed:
                raise trio.ClosedResourceError(f"this stream to {self.peer_id} was closed")
            self._check()
            if self._stream.send_window > 0:
                return self._stream.send_window
            await trio.sleep(_POLL)

    async def _fill(self) -> None:
        """Wait for data, cancellably; then take all of it, to the end."""
        yamux, stream = self._stream.conn, self._stream
        while not (stream.recv_closed or stream.closed or yamux.stream_buffers.get(stream.stream_id)):
            self._check()
            event = yamux.stream_events.get(stream.stream_id)
            if event is None:
                break
            if event.is_set():
                event = yamux.stream_events[stream.stream_id] = trio.Event()
            self._wake = event
            await event.wait()
            if self._closed:
                raise trio.ClosedResourceError(f"this stream to {self.peer_id} was closed")
        if yamux.stream_buffers.get(stream.stream_id):
            self._buffer += await self._muxer.framed(stream.read, -1)
        elif self._muxer.closed:
            raise self._muxer.lost()
        elif stream.recv_closed:
            self._ended = True
        else:
            raise StreamReset(f"{self.peer_id} threw the stream {self.protocol!r} away")
