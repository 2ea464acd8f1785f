"""Yamux as a state machine: bytes in, events and bytes out. It knows no sockets, no clock and no Trio.

The rules, which are those of https://github.com/hashicorp/yamux/blob/master/spec.md; where it is silent, ours:

1. Everything that the wire says about streams is decided here. Whoever drives a session feeds what came to
   :meth:`Session.receive`, acts on the events, and sends what :meth:`Session.take_output` returns, whole and in order.
2. The side that dialled opens streams with odd ids, the other one with even ids. Ids are not used twice.
3. SYN and ACK travel with the first frame of each side: data, window update, end or reset. A stream that was opened
   and reset before anything was sent never existed for the peer.
4. FIN ends the half of its sender, RST ends both. A stream whose halves have both ended is forgotten; what still
   comes for it was under way and is dropped. Payload after FIN breaks the protocol. What was received stays readable,
   whatever ended the stream after it.
5. Payload above the window breaks the protocol, and is seen in the header, before anything is held. So does payload
   for a stream unknown to us that is larger than any window of ours.
6. Windows are given back when the program has read, not when bytes arrive; ``windows`` says by how much.
7. More streams than ``max_inbound`` (twice as many, where the peer has ended its half of the others: it need not wait
   until we are done) are refused, with RST. So is what the peer opens after either side said go-away.
8. A ping is answered with its own value. Who makes us owe more than ``_MOST_REPLIES`` answers (pongs, refusals) without
   taking any breaks the protocol.
9. After go-away no stream is opened; those that are open go on.
10. A peer that broke the protocol is told so by a go-away with the code for it, and is not listened to any more.
11. A stream that we are done with is ended, not reset, and what still comes for it is dropped: some peers (js-libp2p)
    forget what they have not read yet when they see RST. It is reset only if more than ``_MOST_DROPPED`` bytes are
    dropped, before the peer waits for its window, or if the peer has left ``_MOST_CLOSED`` others open since.
12. How the bytes are cut into pieces changes nothing but where ``DataReceived`` events are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hivemind_p2p.transport.yamux import frames
from hivemind_p2p.transport.yamux.events import (
    DataReceived,
    EndReceived,
    Event,
    GoAwayReceived,
    PongReceived,
    ResetReceived,
    SessionFailed,
    StreamOpened,
    StreamOverflowed,
    StreamRefused,
    WindowOpened,
)
from hivemind_p2p.transport.yamux.frames import ACK, FIN, HEADER, HEADER_SIZE, INITIAL_WINDOW, RST, SYN, frame
from hivemind_p2p.transport.yamux.stream_state import StreamState
from hivemind_p2p.transport.yamux.windows import ReceiveWindow, WindowBudget

Buffer = bytes | bytearray | memoryview
_MOST_REPLIES: Final = 1024
_MOST_CLOSED: Final = 256
_MOST_DROPPED: Final = INITIAL_WINDOW // 2


class Session:
    """One side of a connection.

    Args:
        initiator: whether we dialled.
        max_inbound: streams that the peer may hold open.
        max_window: the largest receive window of one stream, in bytes.
        budget: the most unread bytes of all streams together.
    """

    def __init__(self, *, initiator: bool, max_inbound: int, max_window: int, budget: int) -> None:
        self.windows: Final = WindowBudget(max_window=max_window, budget=budget)
        self.going_away = False
        """Whether either side said go-away, or the session failed: no stream can be opened."""
        self.failed = False
        self.inbound_count = 0
        """Streams of the peer that are open, without those that we are done with."""
        self._unended = 0  # those of them whose half the peer has not ended
        self._max_inbound = max_inbound
        self._next_id = 1 if initiator else 2
        self._streams: dict[int, StreamState] = {}
        self._closed: dict[int, StreamState] = {}  # those that we are done with and the peer is not, the oldest first
        self._output: list[Buffer] = []
        self._replies = 0
        self._ping: tuple[int, float] | None = None
        self._pings = 0
        self._head = bytearray()  # the part of a header that came
        self._missing = 0  # bytes still to come of the payload at hand
        self._receiving: StreamState | None = None  # whose payload it is; None when nobody wants it
        self._afterwards = 0  # FIN and RST of the frame whose payload is at hand

    def __len__(self) -> int:
        """Open streams."""
        return len(self._streams)

    # What we do

    def open_stream(self, now: float) -> StreamState:
        """Open a stream. The peer hears of it with the first frame that we send on it.

        Raises:
            RuntimeError: after go-away, or when all ids were used; look at :attr:`exhausted` before.
        """
        if self.exhausted:
            raise RuntimeError("no stream can be opened on this session")
        stream = StreamState(self._next_id, outbound=True, receive_window=ReceiveWindow(self.windows, now))
        self._next_id += 2
        self._streams[stream.id] = stream
        return stream

    @property
    def exhausted(self) -> bool:
        """Whether no stream can be opened any more."""
        return self.going_away or self._next_id > frames.MAX_STREAM_ID

    def send(self, stream: StreamState, data: memoryview) -> int:
        """Send as much of ``data`` as the window and one frame take; how much that was. It is not copied: take the
        output before ``data`` may change."""
        size = min(len(data), stream.send_window, frames.MAX_PAYLOAD)
        if size > 0 and stream.open and not stream.ended:
            stream.send_window -= size
            self._announce_window(stream)
            self._output.append(frame(frames.DATA, self._opening(stream), stream.id, size))
            self._output.append(data[:size])
            return size
        return 0

    def announce(self, stream: StreamState) -> None:
        """Let the peer know of a stream on which we have nothing to say yet."""
        if stream.opening and stream.open:
            self._update_window(stream, max(stream.receive_window.size - INITIAL_WINDOW, 0))

    def end(self, stream: StreamState) -> None:
        """End our half."""
        if stream.open and not stream.ended:
            self._announce_window(stream)
            self._output.append(frame(frames.WINDOW_UPDATE, FIN | self._opening(stream), stream.id, 0))
            stream.ended = True
            self._forget_if_over(stream)

    def close(self, stream: StreamState) -> None:
        """Be done with the stream: the peer can read all that we sent, and what it still sends is dropped."""
        if stream.opening == SYN:  # the peer never heard of it
            self.reset(stream)
            return
        self.end(stream)
        unread = stream.receive_window.held
        stream.receive_window.drop()
        stream.receive_window.release()
        if stream.open and not stream.closed:
            stream.closed = True
            self._closed[stream.id] = stream
            self._uncount(stream)
            self._drop(stream, unread)
            if len(self._closed) > _MOST_CLOSED:
                self.reset(next(iter(self._closed.values())))

    def reset(self, stream: StreamState) -> None:
        """Throw the stream away, with what was not read of it."""
        if stream.open:
            if stream.opening != SYN:
                self._output.append(frame(frames.WINDOW_UPDATE, RST | self._opening(stream), stream.id, 0))
            self._forget(stream)
        stream.receive_window.drop()

    def consumed(self, stream: StreamState, size: int, now: float) -> None:
        """So many received bytes were read: the peer may send more."""
        grant = stream.receive_window.consumed(size, now)
        if grant and stream.open and not stream.remote_ended:
            self._update_window(stream, grant)
            if not self.windows.rtt and self._ping is None:
                self.ping(now)  # streams that carry much are when it matters

    def ping(self, now: float) -> None:
        """Ask whether the peer is alive. An answer to an earlier ping does not count any more."""
        self._pings = (self._pings + 1) % 2**32
        self._ping = (self._pings, now)
        self._output.append(frame(frames.PING, SYN, 0, self._pings))

    def acknowledge(self) -> None:
        """Accept those streams of the peer on which we have sent nothing yet. Peers give a stream up that nobody
        accepts for a minute; before, this can wait for our first words on it."""
        for stream in self._streams.values():
            if stream.opening == ACK:
                self.announce(stream)

    def go_away(self, code: int = frames.NORMAL) -> None:
        """Say that we open and take no more streams."""
        self.going_away = True
        self._output.append(frame(frames.GO_AWAY, 0, 0, code))

    def take_output(self) -> Sequence[Buffer]:
        """What to send now, in order; the session forgets it."""
        output, self._output, self._replies = self._output, [], 0
        return output

    @property
    def has_output(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._output)

    # What the peer does

    def receive(self, data: Buffer, now: float) -> list[Event]:
        """Take what the peer sent; what it means. The views in ``DataReceived`` are of ``data``."""
        events: list[Event] = []
        view, position = memoryview(data), 0
        while position < len(view) and not self.failed:
            if self._missing:
                part = view[position : position + self._missing]
                position += len(part)
                self._payload(part, events)
                continue
            part = view[position : position + HEADER_SIZE - len(self._head)]
            position += len(part)
            if len(part) < HEADER_SIZE:
                self._head += part
                if len(self._head) < HEADER_SIZE:
                    break
                part = memoryview(bytes(self._head))
                self._head.clear()
            version, kind, flags, stream_id, length = HEADER.unpack(part)
            if version != frames.VERSION:
                self._fail(f"it speaks version {version} of Yamux", events)
            else:
                self._frame(kind, flags, stream_id, length, now, events)
        return events

    def receiving(self, size: int) -> StreamState | None:
        """Whose payload the next ``size`` bytes are, all of them; None when they are something else or nobody's."""
        stream = self._receiving
        return stream if stream is not None and stream.open and 0 < size <= self._missing else None

    def received_into_place(self, size: int, now: float) -> list[Event]:
        """Bytes that are :meth:`receiving` came and were read at once: instead of :meth:`receive` and
        :meth:`consumed`."""
        events: list[Event] = []
        stream = self._receiving
        assert stream is not None
        self._missing -= size
        stream.receive_window.hold(size)
        self.consumed(stream, size, now)
        if not self._missing:
            self._frame_over(events)
        return events

    def _frame(self, kind: int, flags: int, stream_id: int, length: int, now: float, events: list[Event]) -> None:
        if kind == frames.DATA or kind == frames.WINDOW_UPDATE:
            if stream_id == 0:
                self._fail("it sent a frame for stream 0, which is the session itself", events)
                return
            stream = self._streams.get(stream_id)
            if flags & SYN:
                stream = self._syn(stream_id, now, events)
                if self.failed:
                    return
            if kind == frames.DATA:
                self._data(stream, stream_id, length, flags, events)
            elif stream is not None:
                self._window_update(stream, length, flags, events)
        elif kind == frames.PING:
            self._pinged(flags, length, now, events)
        elif kind == frames.GO_AWAY:
            self.going_away = True
            events.append(GoAwayReceived(length))
        else:
            self._fail(f"it sent a frame of the unknown type {kind}", events)

    def _syn(self, stream_id: int, now: float, events: list[Event]) -> StreamState | None:
        if stream_id % 2 == self._next_id % 2:
            self._fail(f"it opened stream {stream_id}, an id that is ours to use", events)
        elif stream_id in self._streams:
            self._fail(f"it opened stream {stream_id} twice", events)
        elif self.going_away:
            self._reply(frame(frames.WINDOW_UPDATE, RST, stream_id, 0), events)
        elif self._unended >= self._max_inbound or self.inbound_count >= 2 * self._max_inbound:
            self._reply(frame(frames.WINDOW_UPDATE, RST, stream_id, 0), events)
            if not self.failed:
                events.append(StreamRefused(stream_id))
        else:
            stream = StreamState(stream_id, outbound=False, receive_window=ReceiveWindow(self.windows, now))
            self._streams[stream_id] = stream
            self.inbound_count += 1
            self._unended += 1
            self._announce_window(stream)
            events.append(StreamOpened(stream))
            return stream
        return None

    def _data(self, stream: StreamState | None, stream_id: int, length: int, flags: int, events: list[Event]) -> None:
        if stream is None:
            if length > self.windows.max_window:
                self._fail(f"it sent {length} bytes in one frame for stream {stream_id}, which is not open", events)
                return
        elif length:
            window = stream.receive_window
            if stream.remote_ended:
                self._fail(f"it sent {length} bytes on stream {stream_id}, which it had ended", events)
                return
            if length > window.left:
                self._fail(f"it sent {length} bytes on stream {stream_id}, whose window has {window.left}", events)
                return
            window.left -= length
            if stream.closed:
                self._drop(stream, length)
        self._receiving, self._missing, self._afterwards = stream, length, flags & (FIN | RST)
        if not length:
            self._frame_over(events)

    def _payload(self, part: memoryview, events: list[Event]) -> None:
        self._missing -= len(part)
        stream = self._receiving
        if stream is not None and stream.open and not stream.closed:  # it may have changed in the middle of a frame
            if stream.receive_window.hold(len(part)):
                events.append(DataReceived(stream, part))
            else:
                self.reset(stream)
                events.append(StreamOverflowed(stream))
        if not self._missing:
            self._frame_over(events)

    def _frame_over(self, events: list[Event]) -> None:
        stream, self._receiving = self._receiving, None
        if stream is not None and self._afterwards:
            self._flags(stream, self._afterwards, events)

    def _window_update(self, stream: StreamState, growth: int, flags: int, events: list[Event]) -> None:
        stream.send_window += growth
        if stream.send_window > frames.LARGEST_WINDOW:
            self._fail(f"it opened the window of stream {stream.id} to {stream.send_window} bytes", events)
            return
        if growth:
            events.append(WindowOpened(stream))
        if flags & (FIN | RST):
            self._flags(stream, flags, events)

    def _flags(self, stream: StreamState, flags: int, events: list[Event]) -> None:
        if flags & FIN and stream.open and not stream.remote_ended:
            stream.remote_ended = True
            self._unended -= not stream.outbound and not stream.closed
            stream.receive_window.release()
            events.append(EndReceived(stream))
            self._forget_if_over(stream)
        if flags & RST and stream.open:
            self._forget(stream)
            events.append(ResetReceived(stream))

    def _pinged(self, flags: int, value: int, now: float, events: list[Event]) -> None:
        if flags & SYN:
            self._reply(frame(frames.PING, ACK, 0, value), events)
        elif self._ping is not None and self._ping[0] == value:
            self.windows.rtt = now - self._ping[1]
            self._ping = None
            events.append(PongReceived(self.windows.rtt))

    # Both

    def _opening(self, stream: StreamState) -> int:
        flags, stream.opening = stream.opening, 0
        return flags

    def _announce_window(self, stream: StreamState) -> None:
        if stream.opening and stream.receive_window.size > INITIAL_WINDOW:
            self.announce(stream)

    def _update_window(self, stream: StreamState, growth: int) -> None:
        self._output.append(frame(frames.WINDOW_UPDATE, self._opening(stream), stream.id, growth))

    def _reply(self, answer: bytes, events: list[Event]) -> None:
        self._replies += 1
        if self._replies > _MOST_REPLIES:
            self._fail("it asks for answers and does not take them", events)
        else:
            self._output.append(answer)

    def _forget_if_over(self, stream: StreamState) -> None:
        if stream.ended and stream.remote_ended:
            self._forget(stream)

    def _drop(self, stream: StreamState, size: int) -> None:
        stream.dropped += size
        if stream.dropped > _MOST_DROPPED:
            self.reset(stream)

    def _forget(self, stream: StreamState) -> None:
        stream.open = False
        stream.receive_window.release()
        del self._streams[stream.id]
        if self._closed.pop(stream.id, None) is None:
            self._uncount(stream)

    def _uncount(self, stream: StreamState) -> None:
        if not stream.outbound:
            self.inbound_count -= 1
            self._unended -= not stream.remote_ended

    def _fail(self, reason: str, events: list[Event]) -> None:
        self.failed = True
        self.go_away(frames.PROTOCOL_ERROR)
        events.append(SessionFailed(reason))

    def __repr__(self) -> str:
        state = "failed, " if self.failed else "going away, " if self.going_away else ""
        return f"<Session, {state}{len(self._streams)} streams, {self.windows.held} bytes unread>"
