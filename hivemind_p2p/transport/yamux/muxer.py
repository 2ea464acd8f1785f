"""The shell of :class:`~.session.Session` under Trio: one connection, as a :class:`~..muxer.Muxer`.

Three tasks run a connection. The *reader* feeds the session and wakes whoever its events concern; it never waits for
anything but bytes, so that a slow reader of one stream holds up no other, and two peers that both have much to say
cannot block each other. The *pump* sends what the socket did not take at once. The *keepalive* asks a silent peer
whether it is alive.

Whoever writes does it in its own task, without waiting for another one to be scheduled: session, encryption and socket
take it in one go. When the socket takes no more, writers wait in a queue, first come first served, and each sends one
frame in its turn. All that waits can be cancelled, for nothing is half written by a task that waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConnectionLost
from hivemind_p2p.transport.api import Traffic
from hivemind_p2p.transport.muxer import MuxedStream, Muxer
from hivemind_p2p.transport.noise.channel import SecureChannel
from hivemind_p2p.transport.yamux.events import (
    DataReceived,
    EndReceived,
    Event,
    ResetReceived,
    SessionFailed,
    StreamOpened,
    StreamOverflowed,
    StreamRefused,
    WindowOpened,
)
from hivemind_p2p.transport.yamux.frames import MAX_PAYLOAD
from hivemind_p2p.transport.yamux.session import Session
from hivemind_p2p.transport.yamux.stream import YamuxStream
from hivemind_p2p.transport.yamux.stream_state import StreamState
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
_GOODBYE: Final = 1.0
_UNHURRIED: Final = 0.01
"""Seconds that what nobody waits for may wait for company: the end of a call that was answered travels with the next
one, and costs no packet."""


class YamuxMuxer(Muxer):
    """Streams over one secured connection.

    Args:
        channel: owned by this muxer.
        peer_id: who is at the other end.
        initiator: whether we were the client of the handshake.
    """

    def __init__(
        self, channel: SecureChannel, peer_id: PeerID, *, initiator: bool, settings: TransportSettings
    ) -> None:
        self.peer_id = peer_id
        self.initiator = initiator
        self.session = Session(
            initiator=initiator,
            max_inbound=settings.max_streams_in,
            max_window=settings.max_receive_window,
            budget=settings.max_unread,
        )
        self._channel = channel
        self._settings = settings
        self._streams: dict[int, YamuxStream] = {}
        self._outbound = 0
        self._slot_free = trio.lowlevel.ParkingLot()
        self._on_stream: Callable[[MuxedStream], None] | None = None
        self._turn = trio.Lock()
        self._blocked = trio.Event()
        self._flowing = trio.Event()
        self._sent = trio.lowlevel.ParkingLot()
        self._unhurried = trio.Event()
        self._received = 0
        self._heard = trio.Event()
        self._used = trio.Event()
        self._bytes_received = self._bytes_sent = 0
        self._scope = trio.CancelScope()
        self._running = self._closing = False
        self._lost: str | None = None
        self._write_failure: str | None = None
        self._warned: set[str] = set()

    @property
    def closed(self) -> bool:
        return self._closing or self._lost is not None or self.session.going_away

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    @property
    def traffic(self) -> Traffic:
        return Traffic(self._bytes_received, self._bytes_sent)

    async def run(self, on_stream: Callable[[MuxedStream], None]) -> None:
        self._running, self._on_stream = True, on_stream
        reason = "this host stopped using it"
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump)
                    nursery.start_soon(self._flush_unhurried)
                    nursery.start_soon(self._keepalive)
                    reason = await self._read()
                    self._lose(reason)
                    await self._drain()
                    nursery.cancel_scope.cancel()
        finally:
            self._lose(reason)
            await self._channel.aclose()

    async def open_stream(self) -> YamuxStream:
        while True:
            self.check()
            if self._closing or self.session.exhausted:
                raise ConnectionLost(f"the connection to {self.peer_id} takes no new streams; call again to dial")
            if self._outbound < self._settings.max_streams_out:
                break
            self._warn(
                "%d streams to %s are open: the next one waits for one of them to end (max_streams_out)",
                self._outbound,
                self.peer_id,
            )
            await self._slot_free.park()
        self._outbound += 1
        self._used.set()
        stream = self._add(self.session.open_stream(trio.current_time()))
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            stream.throw_away()
            raise
        return stream

    async def aclose(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._lost is None:
            self.session.go_away()
            self.flush()
            await self._drain()
            self._lose("it was closed here")
        self._scope.cancel()
        await self._channel.aclose()

    # For the streams

    def lost(self) -> ConnectionLost:
        """The error for whoever used the connection when it went away."""
        reason = self._lost or self._write_failure or "it was closed"
        way = "relayed" if self.relayed else "direct"
        return ConnectionLost(f"the {way} connection to {self.peer_id} is gone: {reason}; call again to connect anew")

    def check(self) -> None:
        """Raise ConnectionLost if nothing can be sent any more."""
        if self._lost is not None or self._write_failure is not None:
            raise self.lost()

    @property
    def is_lost(self) -> bool:
        """Whether nothing will be received any more."""
        return self._lost is not None

    async def send(self, state: StreamState, data: memoryview) -> int:
        """Send one frame of ``data``, when it is our turn; how much went into it. 0: the window was closed meanwhile.

        Raises:
            ConnectionLost
        """
        if self._channel.pending or self._turn.locked():
            async with self._turn:
                while self._channel.pending:
                    self.check()
                    await self._flowing.wait()
                self.check()
                size = self.session.send(state, data)
                self.flush()
        else:
            self.check()
            size = self.session.send(state, data)
            self.flush()
            await trio.lowlevel.checkpoint()
        self.check()
        return size

    def send_nowait(self, state: StreamState, data: bytes | bytearray) -> bool:
        """Take all of ``data`` in one frame, for the next :meth:`flush`, if it can go out now. Whether it was taken."""
        if self._channel.pending or self._turn.locked() or not 0 < len(data) <= min(state.send_window, MAX_PAYLOAD):
            return False
        self.session.send(state, memoryview(data))
        return True

    def flush_soon(self) -> None:
        """Send what the session has to say with what is sent next, or alone if that does not come soon."""
        self._unhurried.set()
        if not self._running:
            self.flush()

    def flush(self) -> None:
        """Send what the session has to say, now or as soon as the socket takes it. Never waits, never raises."""
        if self._channel.pending or not self.session.has_output:
            return
        output = self.session.take_output()
        if self._lost is not None or self._write_failure is not None:
            return
        self._bytes_sent += sum(map(len, output))
        try:
            self._channel.write(output)
        except ConnectionLost as error:
            self._write_failed(error)
        if self._channel.pending:
            self._flowing = trio.Event()
            self._blocked.set()

    def discard(self, stream: YamuxStream) -> None:
        """A stream was closed by its owner."""
        if self._streams.pop(stream.state.id, None) is not None and stream.state.outbound:
            self._outbound -= 1
            self._slot_free.unpark()

    # The tasks

    async def _read(self) -> str:
        """Receive until the connection ends; why it did."""
        try:
            await self._channel.settle()
            while True:
                await self._channel.fetch()
                now = trio.current_time()
                while (size := self._channel.next_size()) is not None:
                    self._bytes_received += size
                    self._received += 1  # whole messages: the length of one may have been forged, and never come true
                    for event in self._open(size, now):
                        if isinstance(event, SessionFailed):
                            logger.warning("%s broke the protocol: %s", self.peer_id, event.reason)
                            self.flush()
                            return f"the peer broke the protocol: {event.reason}"
                        self._act_on(event)
                self._heard.set()
                self.flush()
        except ConnectionLost as error:
            return str(error)

    def _open(self, size: int, now: float) -> list[Event]:
        """Decrypt the next message: to where its reader wants it, if it is payload that somebody waits for."""
        state = self.session.receiving(size)
        stream = None if state is None else self._streams.get(state.id)
        target = None if stream is None else stream.room(size)
        if stream is None or target is None or not self._channel.open_into(target):
            return self.session.receive(self._channel.open(size), now)
        stream.filled(size)
        return self.session.received_into_place(size, now)

    def _act_on(self, event: Event) -> None:
        match event:
            case DataReceived(state, data):
                if (stream := self._streams.get(state.id)) is not None:
                    stream.data_received(data)
            case WindowOpened(state):
                if (stream := self._streams.get(state.id)) is not None:
                    stream.window_opened()
            case StreamOpened(state):
                assert self._on_stream is not None, "only run receives"
                self._on_stream(self._add(state))
            case EndReceived(state) | ResetReceived(state):
                if (stream := self._streams.get(state.id)) is not None:
                    stream.peer_finished()
            case StreamOverflowed(state):
                limit = self._settings.max_unread
                self._warn("%s sent more than is read: %d bytes were held; a stream was reset", self.peer_id, limit)
                if (stream := self._streams.get(state.id)) is not None:
                    stream.overflowed()
            case StreamRefused():
                self._warn("%s opens more streams than it may (max_streams_in)", self.peer_id)

    def _warn(self, message: str, *arguments: object) -> None:
        """Warn once: what a peer can do again and again must not fill a disk."""
        level = logging.DEBUG if message in self._warned else logging.WARNING
        self._warned.add(message)
        logger.log(level, message, *arguments)

    async def _pump(self) -> None:
        while True:
            await self._blocked.wait()
            self._blocked = trio.Event()
            if self._write_failure is not None:
                await trio.sleep(_GOODBYE)  # what the peer said before it went may still be read
                self.give_up(self._write_failure)
            while self._channel.pending:
                with trio.move_on_after(self._settings.write_timeout) as scope:
                    try:
                        await self._channel.drain_some()
                    except ConnectionLost as error:
                        self._write_failed(error)
                        self._flowing.set()
                        break
                if scope.cancelled_caught:
                    self.give_up(f"it took no byte for {self._settings.write_timeout:g} s")
                    return
                if not self._channel.pending:
                    self._flowing.set()
                    self._sent.unpark_all()
                    self.flush()

    async def _flush_unhurried(self) -> None:
        while True:
            await self._unhurried.wait()
            await trio.sleep(_UNHURRIED)
            self._unhurried = trio.Event()
            self.flush()

    async def _keepalive(self) -> None:
        settings = self._settings
        while True:
            received = self._received
            self._used = trio.Event()
            with trio.move_on_after(settings.keepalive_interval):
                if not self._streams:
                    await self._used.wait()
                await trio.sleep(settings.keepalive_in_use)
            self.session.acknowledge()
            self.flush()
            if self._received != received:
                continue
            if not await self.answers(patience := settings.keepalive_timeout):
                self.give_up(f"it did not answer within {patience:g} s when asked whether it is alive")

    async def answers(self, seconds: float) -> bool:
        received = self._received
        self.session.ping(trio.current_time())
        self.flush()
        with trio.move_on_after(seconds):
            while self._received == received and self._lost is None:
                if self._heard.is_set():
                    self._heard = trio.Event()
                await self._heard.wait()
        return self._received != received

    def give_up(self, reason: str) -> None:
        self._lose(reason)
        self._channel.abort()
        self._scope.cancel()

    # The end

    def _write_failed(self, error: ConnectionLost) -> None:
        self._write_failure = str(error)
        self._blocked.set()

    def _lose(self, reason: str) -> None:
        """Wake everybody who waits for something that will not come any more."""
        if self._lost is not None:
            return
        self._lost = reason
        self._flowing.set()
        self._heard.set()
        self._slot_free.unpark_all()
        for stream in list(self._streams.values()):
            stream.connection_lost()

    async def _drain(self) -> None:
        """Wait a moment for what was written to go out."""
        if self._running:
            with trio.CancelScope(shield=True), trio.move_on_after(_GOODBYE):
                while self._channel.pending:
                    await self._sent.park()

    def _add(self, state: StreamState) -> YamuxStream:
        stream = self._streams[state.id] = YamuxStream(self, state)
        return stream

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._streams)} streams"
        return f"<YamuxMuxer to {self.peer_id!r}, {state}>"
