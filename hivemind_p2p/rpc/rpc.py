"""``RPC``: the calls of one node, made and served."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar

import trio

from hivemind_p2p.config import RPCSettings
from hivemind_p2p.errors import NodeClosed, RPCError, StreamError
from hivemind_p2p.rpc.budget import ByteBudget, Share
from hivemind_p2p.rpc.channel import Channels
from hivemind_p2p.rpc.channel_serving import ChannelServing, Method
from hivemind_p2p.rpc.context import CallContext, M, Message, StreamHandler, UnaryHandler
from hivemind_p2p.rpc.handling import Served, parse
from hivemind_p2p.rpc.item_queue import ItemQueue
from hivemind_p2p.rpc.link_speed import LinkSpeeds
from hivemind_p2p.rpc.slots import Slots
from hivemind_p2p.rpc.streaming import StreamCall, serve_stream
from hivemind_p2p.rpc.trace import CallStarted, Trace
from hivemind_p2p.rpc.unary import UnaryCall, serve_unary
from hivemind_p2p.rpc.under_way import Call, CallsUnderWay
from hivemind_p2p.transport.api import Network, Stream
from hivemind_p2p.wire.call_frames import CHANNEL
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Message)
_Serve: TypeAlias = Callable[[Stream, CallContext, Served, Share], Awaitable[None]]
ITEM_ROOM: Final = 2**16
"""What an item may have beyond ``max_message_bytes``, which hivemind fills with the bytes of a tensor alone."""


class RPC:
    """Remote calls over a network: ``async with RPC(network, settings) as rpc``. hivemind 1.1's on the wire.

    Methods have hivemind's names, ``Service.method``; one in a namespace is named by
    :func:`~hivemind_p2p.wire.calls.protocol_id`. Leaving the block cancels the calls under way, of both directions, and
    waits for them to end.

    Args:
        network: carries the streams.
        settings: times and bounds.
        trace: told of the beginning and the end of every call; see ``rpc.trace``.

    Attributes:
        speeds: how fast bytes come from each peer.
    """

    def __init__(self, network: Network, settings: RPCSettings | None = None, *, trace: Trace | None = None) -> None:
        self.network = network
        self.settings = settings if settings is not None else RPCSettings()
        self.speeds = LinkSpeeds()
        self._methods: dict[str, Method] = {}
        self._budget = ByteBudget(self.settings.max_bytes_per_peer)
        self._under_way = CallsUnderWay(self.settings.timeout, trace)
        self._channels = Channels(network, self.settings.max_message_bytes)
        self._serving = ChannelServing(self.settings, self._methods, self._budget, self._under_way)

    async def __aenter__(self) -> Self:
        self._under_way.running = True
        self.network.set_stream_handler(CHANNEL, self._serving.serve)
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for method in list(self._methods):
            self.unregister(method)
        self.network.set_stream_handler(CHANNEL, None)
        await self._under_way.end()
        self._channels.close()

    def register(self, method: str, request_type: type[M], handler: UnaryHandler[M]) -> None:
        """Serve a method: ``async def handler(request, context) -> response``.

        The handler is cancelled when its caller gives up. What it raises, its caller gets as a ``RemoteError``. One
        that has nothing to wait for may be a plain function, which is cheaper to serve.

        Raises:
            RPCError: it is served already.
        """
        settings = self.settings

        async def serve(stream: Stream, context: CallContext, call: Served, share: Share) -> None:
            await serve_unary(
                stream,
                context,
                request_type,
                handler,
                call,
                limit=settings.max_message_bytes,
                timeout=settings.transfer_timeout,
                share=share,
                timed=partial(self.speeds.add, stream.peer_id),
            )

        self._serve_method(method, serve, request_type, handler)

    def register_stream(self, method: str, request_type: type[M], handler: StreamHandler[M]) -> None:
        """Serve a method that takes or gives items: ``async def handler(requests, context): ... yield response``.

        Items are read ahead as far as ``settings.max_queued_items`` and ``max_queued_bytes`` allow; then the caller has
        to wait. A caller that gives up is noticed while there is room, and when a response is sent.

        Raises:
            RPCError: it is served already.
        """
        settings = self.settings

        async def serve(stream: Stream, context: CallContext, call: Served, share: Share) -> None:
            queue = ItemQueue(settings.max_queued_items, settings.max_queued_bytes)
            timed = partial(self.speeds.add, stream.peer_id)
            await serve_stream(
                stream, context, request_type, handler, call,
                limit=self._item_limit, queue=queue, share=share, timed=timed,
            )  # fmt: skip

        self._serve_method(method, serve)

    def unregister(self, method: str) -> None:
        """Stop to serve a method; calls of it that are under way go on."""
        if self._methods.pop(method, None) is not None:
            self.network.set_stream_handler(method, None)

    async def call(
        self,
        peer_id: PeerID,
        method: str,
        request: Message,
        response_type: type[R],
        *,
        timeout: float | None = None,
        carries: int = 0,
    ) -> R:
        """Call a method of a peer, connecting first when needed.

        Args:
            timeout: seconds for the whole call; by default ``settings.timeout``.
            carries: bytes of the answer, where that is known; see ``Network.open_stream``.

        Raises:
            DeadlineExceeded: no answer in time.
            RemoteError: the peer's handler failed.
            MessageTooLarge: the request or the answer is above ``settings.max_message_bytes``.
            ProtocolViolation: the answer is garbage.
            DialError, RelayLimited, ProtocolNotSupported, StreamError: the peer cannot be reached, or not with so much,
                or does not serve the method.
            NodeClosed: this ``RPC`` is not running, or stopped meanwhile.
        """
        call = UnaryCall(peer_id.to_bytes(), method, request, self.settings.max_message_bytes)
        with Call(self._under_way, CallStarted(peer_id, method, outbound=True, request=request), timeout):
            channel = await self._channels.to(peer_id, max(call.size, carries))
            if channel is not None and (answer := await channel.call(method, call.data)) is not None:
                return parse(response_type, answer)
            stream = await self.network.open_stream(peer_id, method, carries=max(call.size, carries))
            try:
                response = await call.on(stream, response_type, partial(self.speeds.add, peer_id))
            except BaseException:
                await stream.reset()
                raise
            stream.close()
        return response

    def stream_call(
        self,
        peer_id: PeerID,
        method: str,
        requests: AsyncIterable[Message],
        response_type: type[R],
        *,
        timeout: float | None = None,
        carries: int = 0,
    ) -> AbstractAsyncContextManager[AsyncIterator[R]]:
        """Call a method of a peer that takes or gives items::

            async with rpc.stream_call(peer_id, method, requests, Response) as responses:
                async for response in responses: ...

        Leaving the block before the last response tells the peer that nobody waits any more.

        Args:
            requests: the items to send; taken as fast as the peer takes them, in another task. A generator is closed
                at the end.
            timeout: seconds for the whole block; by default ``settings.timeout``.
            carries: bytes of all requests or of all responses, whichever is more, where that is known.

        Raises:
            What :meth:`call` raises, and what ``requests`` raises, when a response is asked for.
        """
        return self._stream_call(CallStarted(peer_id, method, outbound=True), requests, response_type, timeout, carries)

    @asynccontextmanager
    async def _stream_call(
        self,
        call: CallStarted,
        requests: AsyncIterable[Message],
        response_type: type[R],
        timeout: float | None,
        carries: int,
    ) -> AsyncIterator[AsyncIterator[R]]:
        with Call(self._under_way, call, timeout):
            stream = await self.network.open_stream(call.peer_id, call.method, carries=carries)
            responses = StreamCall(stream, response_type, self._item_limit, partial(self.speeds.add, call.peer_id))
            failure: Exception | None = None
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(responses.send_all, requests)
                    try:
                        yield responses
                    except Exception as error:  # raised below: the nursery would wrap it in a group
                        failure = error
                    nursery.cancel_scope.cancel()
            finally:
                await stream.reset()  # it has ended, or it must
            if failure is not None:
                raise failure

    @property
    def trace(self) -> Trace | None:
        """Told of the beginning and the end of every call."""
        return self._under_way.trace

    @trace.setter
    def trace(self, trace: Trace | None) -> None:
        self._under_way.trace = trace

    @property
    def _item_limit(self) -> int:
        return self.settings.max_message_bytes + ITEM_ROOM

    def _serve_method(
        self,
        method: str,
        serve: _Serve,
        request_type: type[Message] | None = None,
        handler: UnaryHandler[Any] | None = None,
    ) -> None:
        if method in self._methods:
            raise RPCError(f"{method} is served already; unregister it first")
        slots = Slots(self.settings.max_calls_per_peer, self.settings.max_calls)
        self.network.set_stream_handler(method, partial(self._serve, serve, slots))
        self._methods[method] = Method(slots, request_type, handler)

    async def _serve(self, serve: _Serve, slots: Slots, stream: Stream) -> None:
        """Serve one call, on a stream that a peer opened for it."""
        peer_id, method = stream.peer_id, stream.protocol
        connection = stream.connection or next(iter(self.network.connections(peer_id)), None)
        context = CallContext(peer_id, None if connection is None else connection.remote_maddr, method)
        call = Call(self._under_way, CallStarted(peer_id, method, outbound=False), math.inf)
        try:
            with call:
                async with slots.one(peer_id):
                    with self._budget.share(peer_id) as share:
                        await serve(stream, context, call, share)
        except* (StreamError, NodeClosed) as group:
            logger.debug("a call of %s was not served to its end: %s", method, group.exceptions[0])
            await stream.reset()

    def __repr__(self) -> str:
        calls = len(self._under_way) - len(self._serving)
        state = f"{len(self._methods)} methods, {calls} calls" if self._under_way.running else "not running"
        return f"<RPC of {self.network.peer_id!r}, {state}>"
