"""The caller's end of a channel of small calls: one stream for all of them, which stays open.

A call on a stream of its own spends more on opening, agreeing and closing than on its bytes. On a channel it is one
frame there and one back. What makes that simple is that nobody has to use it: a call that is large, or for which there
is no room at once, has a stream of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import outcome
import trio

from hivemind_p2p.errors import HivemindError, ProtocolNotSupported, RPCError, StreamError
from hivemind_p2p.rpc.failures import remote_error
from hivemind_p2p.transport.api import Connection, Network, Stream
from hivemind_p2p.wire import call_frames
from hivemind_p2p.wire.call_frames import CHANNEL, MAX_CALLS, MAX_ENVELOPE, MAX_REQUEST, CallFrame, Kind
from hivemind_p2p.wire.expert_messages import Buffer
from hivemind_p2p.wire.framing import FrameReader, varint_header
from hivemind_p2p.wire.peer_id import PeerID

_AT_ONCE: Final = 2**18


class Channel:
    """One channel.

    Args:
        stream: for it, on which nothing was sent yet.
        limit: the most bytes of an answer.
    """

    def __init__(self, stream: Stream, limit: int) -> None:
        self._stream = stream
        self._reader = FrameReader(varint_header, limit + MAX_ENVELOPE)
        self._waiting: dict[int, trio.lowlevel.Task] = {}
        self._unsent = bytearray()
        """Cancellations for which there was no room."""
        self._last = 0
        self._failure: HivemindError | None = None
        self._ended = False
        """Whether the callee ended it between calls."""
        self.refused = False
        """Whether the callee does not serve channels."""
        self.over = False
        """Whether it takes no more calls."""
        stream.when_readable(self._readable)

    async def call(self, method: str, data: Sequence[Buffer]) -> bytearray | None:
        """The response to a request. None: nothing was executed, for there was no room to send it at once, or the
        callee had ended the channel before it came.

        Raises:
            RemoteError: the peer's handler failed.
            ProtocolNotSupported: the peer does not serve the method.
            ProtocolViolation, MessageTooLarge, StreamError
        """
        number = self._begin(method, data)
        if number is None:
            return None
        self._waiting[number] = trio.lowlevel.current_task()

        def give_up(_: object) -> trio.lowlevel.Abort:
            self._cancel(number)
            return trio.lowlevel.Abort.SUCCEEDED

        frame: CallFrame | None = await trio.lowlevel.wait_task_rescheduled(give_up)
        if frame is None:
            await self._end()
            return None
        if frame.kind is Kind.ANSWER:
            return frame.data
        peer_id = self._stream.peer_id
        if frame.kind is Kind.NOT_SERVED:
            raise ProtocolNotSupported(f"{peer_id} does not serve {method!r}")
        raise remote_error(frame.data.decode(errors="replace"), f"{method} of {peer_id}")

    def close(self) -> None:
        """End it; who waits for an answer is told."""
        self.over = True
        self._failure = self._failure or StreamError(f"the channel of calls to {self._stream.peer_id} was closed here")
        self._stream.close()
        self._wake_all()

    def _begin(self, method: str, data: Sequence[Buffer]) -> int | None:
        """Send a request, if there is room for it at once; its number."""
        if self.over or len(self._waiting) >= MAX_CALLS:
            return None
        self._last = number = self._last + 1
        head = call_frames.head(Kind.CALL, number, sum(map(len, data)), method)
        try:
            if not self._stream.send_nowait(b"".join((self._unsent, head, *data))):
                return None
        except StreamError:
            return None  # nothing was sent; whatever is wrong with the connection, a stream of its own will tell
        self._unsent.clear()
        return number

    def _cancel(self, number: int) -> None:
        del self._waiting[number]
        self._unsent += call_frames.head(Kind.CANCEL, number, 0)
        try:
            if not self.over and self._stream.send_nowait(bytes(self._unsent)):
                self._unsent.clear()
        except StreamError:
            return  # then it ends, and the callee notices
        if len(self._unsent) > MAX_REQUEST:
            self._unsent.clear()  # of a peer that takes nothing; what is not cancelled is computed in vain

    def _readable(self) -> None:
        """Something came: bytes, the end, or a failure. Runs in the turn of the connection's reader."""
        came = False
        while data := self._stream.receive_nowait(_AT_ONCE):
            came = True
            self._reader.feed(data)
        try:
            while (frame := self._reader.pop()) is not None:
                self._take(call_frames.read(frame.body))
        except RPCError as error:
            self._failure = error
        if came and self._failure is None:
            self._stream.when_readable(self._readable)
            return
        self.over = True
        if self._failure is not None or not self._waiting:
            self._stream.close()
        self._wake_all()

    def _take(self, frame: CallFrame) -> None:
        waiting = self._waiting.pop(frame.number, None)  # None: nobody waits any more
        if waiting is not None:
            trio.lowlevel.reschedule(waiting, outcome.Value(frame))

    def _wake_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for task in waiting.values():
            trio.lowlevel.reschedule(task, outcome.Value(None))

    async def _end(self) -> None:
        """Raise what is wrong with the channel; return if the callee ended it, which it does between calls."""
        if self._failure is None and not self._ended:
            try:
                with trio.CancelScope(shield=True):  # the end is there: nothing is waited for
                    data = await self._stream.receive_some(1)
                if data or not self._reader.between_frames:
                    raise StreamError(f"{self._stream.peer_id} ended its channel of calls within an answer")
                self._ended = True
            except ProtocolNotSupported:  # it does not serve channels, whatever it said
                self._ended = self.refused = True
            except HivemindError as error:
                self._failure = error
            finally:
                self._stream.close()
        if self._failure is not None:
            raise self._failure

    def __repr__(self) -> str:
        state = "over" if self.over else f"{len(self._waiting)} calls"
        return f"<Channel to {self._stream.peer_id!r}, {state}>"


class Channels:
    """The channels of one node to its peers, one for each connection that carries calls.

    Args:
        limit: the most bytes of an answer.
    """

    def __init__(self, network: Network, limit: int) -> None:
        self._network, self._limit = network, limit
        self._channels: dict[Connection, Channel | None] = {}

    async def to(self, peer_id: PeerID, size: int) -> Channel | None:
        """The channel for a call that takes so many bytes, there or back; None: it needs a stream of its own."""
        if size > MAX_REQUEST:
            return None
        connection = next(iter(self._network.connections(peer_id)), None)
        if connection is None:
            return None
        if connection not in self._channels:
            await self._open(connection)
        channel = self._channels.get(connection)
        if channel is not None and channel.over:
            if channel.refused:
                self._channels[connection] = None
            else:
                del self._channels[connection]  # the next call opens another
            return None
        return channel

    def close(self) -> None:
        """End all."""
        for channel in self._channels.values():
            if channel is not None:
                channel.close()
        self._channels.clear()

    async def _open(self, connection: Connection) -> None:
        description = connection.description
        if description is None or CHANNEL not in description.protocols or connection.limit is not None:
            return
        self._forget_those_that_are_over()
        self._channels[connection] = None  # as long as it is being opened, and should that fail
        try:
            stream = await connection.open_stream(CHANNEL)
        except (StreamError, ProtocolNotSupported):
            return
        except BaseException:
            del self._channels[connection]
            raise
        self._channels[connection] = Channel(stream, self._limit)

    def _forget_those_that_are_over(self) -> None:
        for connection, channel in list(self._channels.items()):
            if connection.closed or (channel is not None and channel.over):
                del self._channels[connection]

    def __repr__(self) -> str:
        return f"<Channels to {len(self._channels)} peers>"
