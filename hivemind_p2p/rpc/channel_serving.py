"""The callee's end of channels of small calls."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import trio

from hivemind_p2p.config import RPCSettings
from hivemind_p2p.errors import NodeClosed, Overloaded, ProtocolViolation, RPCError, StreamError
from hivemind_p2p.rpc.budget import ByteBudget, Share
from hivemind_p2p.rpc.context import CallContext, Message, UnaryHandler
from hivemind_p2p.rpc.failures import text_of
from hivemind_p2p.rpc.framed import SMALL
from hivemind_p2p.rpc.handling import packed, parse
from hivemind_p2p.rpc.slots import Slots
from hivemind_p2p.rpc.trace import CallStarted
from hivemind_p2p.rpc.under_way import Call, CallsUnderWay
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.wire import call_frames
from hivemind_p2p.wire.call_frames import MAX_CALLS, MAX_ENVELOPE, MAX_REQUEST, Kind
from hivemind_p2p.wire.framing import FrameReader, varint_header
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
IDLE: Final = 5.0
"""Seconds without a call after which a channel ends: a connection without streams can be dropped for another."""
_AT_ONCE: Final = 2**16
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
    """One channel. Its frames are taken in the turn of the connection's reader: a handler that has nothing to wait for
    has answered before that ends, and costs no task."""

    def __init__(self, serving: ChannelServing, stream: Stream, share: Share) -> None:
        self._serving, self._stream, self._share = serving, stream, share
        self._reader = FrameReader(varint_header, MAX_REQUEST + MAX_ENVELOPE)
        self._calls: dict[int, Call | None] = {}
        """What is under way; None once it is too late to give it up: an answer is sent whole or not at all."""
        self._taken = 0
        self._turn = trio.Lock()
        self._over = trio.Event()
        self._failure: RPCError | StreamError | None = None
        connection = stream.connection
        self._remote_maddr = None if connection is None else connection.remote_maddr

    async def run(self) -> None:
        """
        Raises:
            ProtocolViolation, MessageTooLarge: the caller sent what it must not.
            StreamError
        """
        async with trio.open_nursery() as self._nursery:
            self._stream.when_readable(self._readable)
            taken = -1
            while not self._over.is_set() and (self._calls or self._taken != taken):
                taken = self._taken
                with trio.move_on_after(IDLE):
                    await self._over.wait()
            self._over.set()
            self._nursery.cancel_scope.cancel()  # nobody waits for the answers
        if self._failure is not None:
            raise self._failure

    def _readable(self) -> None:
        """Something came: bytes, the end, or a failure."""
        came = False
        while data := self._stream.receive_nowait(_AT_ONCE):
            came = True
            self._reader.feed(data)
        if came:
            self._take_all()
        else:
            self._over.set()

    def _take_all(self, first: bytearray | None = None) -> None:
        """Take the frames that have come, and wait for more."""
        try:
            if first is not None:
                self._take(first, len(first))
            while not self._over.is_set() and (frame := self._reader.pop()) is not None:
                held = size if (size := len(frame.body)) > SMALL else 0  # the number of calls bounds small ones
                if held and not self._share.take_nowait(held):
                    self._nursery.start_soon(self._wait_for_room, frame.body)
                    return
                self._take(frame.body, held)
        except (RPCError, StreamError) as error:
            self._failure = error
            self._over.set()
        if not self._over.is_set():
            self._stream.when_readable(self._readable)

    async def _wait_for_room(self, body: bytearray) -> None:
        await self._share.take(len(body))
        self._take_all(body)

    def _take(self, body: bytearray, held: int) -> None:
        """Take one frame, for which so many bytes of the share are held."""
        frame = call_frames.read(body)
        number, peer_id, under_way = frame.number, self._stream.peer_id, self._serving.under_way
        self._taken += 1
        if frame.kind is Kind.CANCEL and not frame.data:
            if (given_up := self._calls.get(number)) is not None:
                given_up.give_up()
            return
        if frame.kind is not Kind.CALL or number in self._calls:
            raise ProtocolViolation(f"{peer_id} does not keep to the rules of a channel of calls")
        if not under_way.running:
            return  # this channel is about to end
        if len(self._calls) >= 2 * MAX_CALLS:
            self._share.give_back(held)
            why = Overloaded(f"more than {2 * MAX_CALLS} calls are under way on one channel")
            if not self._send_nowait(_error(number, text_of(why))):
                raise StreamError(f"{peer_id} takes no answers, and calls")
            return
        call = self._calls[number] = Call(under_way, CallStarted(peer_id, frame.method, outbound=False), math.inf)
        call.begins()
        work = _Work(number, frame.method, held, call)
        method = self._serving.methods.get(frame.method)
        if method is None or method.handler is None or method.request_type is None:
            self._answer(work, call_frames.head(Kind.NOT_SERVED, number, 0))
        elif method.slots.take_nowait(peer_id):
            work.slots = method.slots
            response = self._handle(work, method, frame.data)
            if isinstance(response, Awaitable):
                self._nursery.start_soon(self._wait, work, response)
            else:
                self._answer(work, self._packed(work, response))
        else:
            self._nursery.start_soon(self._stand_in_line, work, method, frame.data)

    def _handle(self, work: _Work, method: Method, data: bytearray) -> Awaitable[Message] | Message | Exception:
        """Call the handler."""
        assert method.handler is not None
        assert method.request_type is not None
        context = CallContext(self._stream.peer_id, self._remote_maddr, work.method)
        try:
            return method.handler(parse(method.request_type, data), context)
        except Exception as error:  # the boundary of one request
            return error

    async def _stand_in_line(self, work: _Work, method: Method, data: bytearray) -> None:
        async def wait() -> Message:
            await method.slots.take(self._stream.peer_id)
            work.slots = method.slots
            response = self._handle(work, method, data)
            if isinstance(response, Exception):
                raise response
            return await response if isinstance(response, Awaitable) else response

        await self._wait(work, wait())

    async def _wait(self, work: _Work, awaitable: Awaitable[Message]) -> None:
        response: Message | Exception
        try:
            with work.call:
                try:
                    response = await awaitable
                except Exception as error:  # the boundary of one request
                    response = error
                self._calls[work.number] = None
                frame = self._packed(work, response)
                if not self._send_nowait(frame):
                    await self._send(frame)
        except StreamError as error:
            if not work.call.given_up:  # who gave one call up may wait for others
                raise
            logger.debug("a call of %s was not served to its end: %s", work.method, error)
        finally:
            self._forget(work)

    def _packed(self, work: _Work, response: Message | Exception) -> bytes:
        head = partial(call_frames.head, Kind.ANSWER, work.number)
        sent = packed(response, head, self._serving.settings.max_message_bytes, work.call)
        if isinstance(sent, str):
            return _error(work.number, sent)
        return b"".join((sent[0], *sent[1]))

    def _answer(self, work: _Work, frame: bytes) -> None:
        """Answer a call for which nothing was waited."""
        if self._send_nowait(frame):
            work.call.ends()
            self._forget(work)
        else:
            self._calls[work.number] = None
            self._nursery.start_soon(self._answer_later, work, frame)

    async def _answer_later(self, work: _Work, frame: bytes) -> None:
        try:
            with work.call:
                await self._send(frame)
        finally:
            self._forget(work)

    def _forget(self, work: _Work) -> None:
        del self._calls[work.number]
        if work.slots is not None:
            work.slots.give_back(self._stream.peer_id)
        if work.held:
            self._share.give_back(work.held)

    def _send_nowait(self, frame: bytes) -> bool:
        return not self._turn.locked() and self._stream.send_nowait(frame)

    async def _send(self, frame: bytes) -> None:
        """Send one frame, behind those that are being sent."""
        timeout = self._serving.settings.transfer_timeout
        with trio.move_on_after(timeout) as scope:
            async with self._turn:
                await self._stream.send_all(frame)
        if scope.cancelled_caught:
            raise StreamError(f"{self._stream.peer_id} did not take an answer within {timeout:g} s")

    def __repr__(self) -> str:
        return f"<_Channel of {self._stream.peer_id!r}, {len(self._calls)} calls>"


@dataclass(slots=True)
class _Work:
    """What one call holds."""

    number: int
    method: str
    held: int
    """Bytes of the caller's share."""
    call: Call
    slots: Slots | None = None
    """Those of which it holds one."""


def _error(number: int, text: str) -> bytes:
    data = text.encode(errors="replace")
    return call_frames.head(Kind.ERROR, number, len(data)) + data
