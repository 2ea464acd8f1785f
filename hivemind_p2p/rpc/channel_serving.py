"""The callee's end of channels of small calls."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import trio

from hivemind_p2p.config import RPCSettings
from hivemind_p2p.errors import NodeClosed, Overloaded, ProtocolViolation, RPCError, StreamError
from hivemind_p2p.rpc.budget import ByteBudget, Share
from hivemind_p2p.rpc.context import CallContext, Message, UnaryHandler
from hivemind_p2p.rpc.failures import text_of
from hivemind_p2p.rpc.handling import outcome, packed, parse
from hivemind_p2p.rpc.slots import Slots
from hivemind_p2p.rpc.trace import CallStarted
from hivemind_p2p.rpc.under_way import Call, CallsUnderWay
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.wire import call_frames
from hivemind_p2p.wire.call_frames import MAX_CALLS, MAX_ENVELOPE, MAX_REQUEST, CallFrame, Kind
from hivemind_p2p.wire.expert_messages import Buffer
from hivemind_p2p.wire.framing import FrameReader, varint_header
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
IDLE: Final = 5.0
"""Seconds without a call after which a channel ends: a connection without streams can be dropped for another."""
_AT_ONCE: Final = 2**16
_SMALL: Final = 2**14
"""Requests up to this size are not counted against what a peer may make us hold: the number of calls bounds them."""
_PER_PEER: Final = 4
"""Channels of one peer: it has one for each connection, and one of the past may not have ended."""


class Method(NamedTuple):
    """A method that is served; ``handler`` is None if it takes or gives items, which no channel carries."""

    slots: Slots
    request_type: type[Message] | None
    handler: UnaryHandler[Any] | None


class ChannelServing:
    """Serves the channels of all peers.

    Args:
        methods: what is served, by name.
        budget: of the bytes that peers may make us hold.
    """

    def __init__(
        self,
        settings: RPCSettings,
        methods: Mapping[str, Method],
        budget: ByteBudget,
        under_way: CallsUnderWay,
    ) -> None:
        self.settings, self.methods, self.budget, self.under_way = settings, methods, budget, under_way
        self._channels: Counter[PeerID] = Counter()

    async def serve(self, stream: Stream) -> None:
        """Serve the calls of one channel until its caller ends it, or makes no more."""
        peer_id = stream.peer_id
        if self._channels[peer_id] == _PER_PEER:
            raise StreamError(f"{peer_id} opens more than {_PER_PEER} channels of calls")
        scope = trio.CancelScope()
        self.under_way.add(scope)
        self._channels[peer_id] += 1
        try:
            with scope, self.budget.share(peer_id) as share:
                await _Channel(self, stream, share).run()
        except* (StreamError, NodeClosed, RPCError) as group:
            logger.debug("a channel of calls ended early: %s", group.exceptions[0])
            await stream.reset()
        finally:
            self.under_way.remove(scope)
            self._channels[peer_id] -= 1
            if not self._channels[peer_id]:
                del self._channels[peer_id]
        if scope.cancelled_caught:
            await stream.reset()

    def __len__(self) -> int:
        return self._channels.total()

    def __repr__(self) -> str:
        return f"<ChannelServing, {len(self)} channels>"


class _Channel:
    """One channel."""

    def __init__(self, serving: ChannelServing, stream: Stream, share: Share) -> None:
        self._serving, self._stream, self._share = serving, stream, share
        self._reader = FrameReader(varint_header, MAX_REQUEST + MAX_ENVELOPE)
        self._calls: dict[int, Call | None] = {}
        """What is under way; None once it is too late to give it up: an answer is sent whole or not at all."""
        self._turn = trio.Lock()
        connection = stream.connection
        self._remote_maddr = None if connection is None else connection.remote_maddr

    async def run(self) -> None:
        """
        Raises:
            ProtocolViolation, MessageTooLarge: the caller sent what it must not.
            StreamError
        """
        async with trio.open_nursery() as nursery:
            while (frame := await self._next()) is not None:
                if frame.kind is Kind.CANCEL:
                    if (call := self._calls.get(frame.number)) is not None:
                        call.give_up()
                    continue
                if frame.kind is not Kind.CALL or frame.number in self._calls:
                    raise ProtocolViolation(f"{self._stream.peer_id} does not keep to the rules of a channel of calls")
                if len(self._calls) >= 2 * MAX_CALLS:
                    text = text_of(Overloaded(f"more than {2 * MAX_CALLS} calls are under way on one channel"))
                    await self._send_text(Kind.ERROR, frame.number, text)
                    continue
                if (held := len(frame.data)) > _SMALL:
                    await self._share.take(held)
                started = CallStarted(self._stream.peer_id, frame.method, outbound=False)
                call = self._calls[frame.number] = Call(self._serving.under_way, started, math.inf)
                nursery.start_soon(self._serve, frame, call)
                del frame  # its data is the call's
            nursery.cancel_scope.cancel()  # nobody waits for the answers

    async def _next(self) -> CallFrame | None:
        """The next frame; None: the caller ended the channel, or makes no more calls."""
        while (frame := self._reader.pop()) is None:
            data = self._stream.receive_nowait(_AT_ONCE)
            if not data:
                with trio.move_on_after(IDLE) as scope:
                    data = await self._stream.receive_some(_AT_ONCE)
                if scope.cancelled_caught and self._reader.between_frames:
                    if not self._calls:
                        return None
                    continue
                if not data and self._reader.between_frames:
                    return None
                if not data:
                    raise StreamError(f"{self._stream.peer_id} did not finish what it began to send on its channel")
            self._reader.feed(data)
        return call_frames.read(frame.body)

    async def _serve(self, frame: CallFrame, call: Call) -> None:
        number, method, size = frame.number, frame.method, len(frame.data)
        try:
            with call:
                await self._answer(number, method, frame.data, call)
        except StreamError as error:  # who gave one call up may wait for others
            if not call.given_up:
                raise
            logger.debug("a call of %s was not served to its end: %s", method, error)
        finally:
            del self._calls[number]
            if size > _SMALL:
                self._share.give_back(size)

    async def _answer(self, number: int, name: str, data: bytearray, call: Call) -> None:
        serving = self._serving
        method = serving.methods.get(name)
        if method is None or method.handler is None or method.request_type is None:
            self._calls[number] = None
            await self._send(call_frames.head(Kind.NOT_SERVED, number, 0), [])
            return
        context = CallContext(self._stream.peer_id, self._remote_maddr, name)
        async with method.slots.one(self._stream.peer_id):
            try:
                request = parse(method.request_type, data)
            except RPCError as error:
                response: Message | Exception = error
            else:
                response = await outcome(method.handler, request, context, lambda: None)
            self._calls[number] = None
            head = partial(call_frames.head, Kind.ANSWER, number)
            sent = packed(response, head, serving.settings.max_message_bytes, call)
            if isinstance(sent, str):
                await self._send_text(Kind.ERROR, number, sent)
            else:
                await self._send(*sent)

    async def _send_text(self, kind: Kind, number: int, text: str) -> None:
        data = text.encode(errors="replace")
        await self._send(call_frames.head(kind, number, len(data)), [data])

    async def _send(self, head: bytes, data: Sequence[Buffer]) -> None:
        """Send one frame, behind those that are being sent."""
        frame = b"".join((head, *data))
        if not self._turn.locked() and self._stream.send_nowait(frame):
            return
        timeout = self._serving.settings.transfer_timeout
        with trio.move_on_after(timeout) as scope:
            async with self._turn:
                await self._stream.send_all(frame)
        if scope.cancelled_caught:
            raise StreamError(f"{self._stream.peer_id} did not take an answer within {timeout:g} s")

    def __repr__(self) -> str:
        return f"<_Channel of {self._stream.peer_id!r}, {len(self._calls)} calls>"
