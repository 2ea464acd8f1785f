"""``RPC``: the calls of one node, made and served."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeAlias, TypeVar

import trio

from hivemind_p2p.config import RPCSettings
from hivemind_p2p.errors import DeadlineExceeded, HivemindError, NodeClosed, RPCError, StreamError
from hivemind_p2p.rpc.budget import ByteBudget, Share
from hivemind_p2p.rpc.context import CallContext, M, Message, StreamHandler, UnaryHandler
from hivemind_p2p.rpc.failures import text_of
from hivemind_p2p.rpc.item_queue import ItemQueue
from hivemind_p2p.rpc.link_speed import LinkSpeeds
from hivemind_p2p.rpc.slots import Slots
from hivemind_p2p.rpc.streaming import StreamCall, serve_stream
from hivemind_p2p.rpc.trace import CallEnded, CallStarted, Trace
from hivemind_p2p.rpc.unary import Served, UnaryCall, serve_unary
from hivemind_p2p.transport.api import Network, Stream
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
        running: whether it is inside its block.
        under_way: what cancels each call, of both directions.
    """

    def __init__(self, network: Network, settings: RPCSettings | None = None, *, trace: Trace | None = None) -> None:
        self.network = network
        self.settings = settings if settings is not None else RPCSettings()
        self.trace = trace
        self.speeds = LinkSpeeds()
        self._methods: dict[str, Slots] = {}
        self._budget = ByteBudget(self.settings.max_bytes_per_peer)
        self.running = False
        self.under_way: set[trio.CancelScope] = set()
        self._all_ended = trio.Event()

    async def __aenter__(self) -> Self:
        self.running = True
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.running = False
        for method in list(self._methods):
            self.unregister(method)
        for scope in self.under_way:
            scope.cancel()
        if self.under_way:
            await self._all_ended.wait()

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

        self._serve_method(method, serve)

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
        with _Call(self, CallStarted(peer_id, method, outbound=True, request=request), timeout):
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
        with _Call(self, call, timeout):
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

    def ended(self, scope: trio.CancelScope) -> None:
        """A call is not under way any more."""
        self.under_way.remove(scope)
        if not self.under_way and not self.running:
            self._all_ended.set()

    @property
    def _item_limit(self) -> int:
        return self.settings.max_message_bytes + ITEM_ROOM

    def _serve_method(self, method: str, serve: _Serve) -> None:
        if method in self._methods:
            raise RPCError(f"{method} is served already; unregister it first")
        slots = Slots(self.settings.max_calls_per_peer, self.settings.max_calls)
        self.network.set_stream_handler(method, partial(self._serve, serve, slots))
        self._methods[method] = slots

    async def _serve(self, serve: _Serve, slots: Slots, stream: Stream) -> None:
        """Serve one call, on a stream that a peer opened for it."""
        peer_id, method = stream.peer_id, stream.protocol
        connection = stream.connection or next(iter(self.network.connections(peer_id)), None)
        context = CallContext(peer_id, None if connection is None else connection.remote_maddr, method)
        call = _Call(self, CallStarted(peer_id, method, outbound=False), math.inf)
        try:
            with call:
                async with slots.one(peer_id):
                    with self._budget.share(peer_id) as share:
                        await serve(stream, context, call, share)
        except* (StreamError, NodeClosed) as group:
            logger.debug("a call of %s was not served to its end: %s", method, group.exceptions[0])
            await stream.reset()

    def __repr__(self) -> str:
        state = f"{len(self._methods)} methods, {len(self.under_way)} calls" if self.running else "not running"
        return f"<RPC of {self.network.peer_id!r}, {state}>"


class _Call:
    """A call under way, inside ``with``: bounds it, makes it end with its RPC, and tells ``trace`` of it.

    Raises:
        NodeClosed: the RPC does not run, or stopped meanwhile.
        DeadlineExceeded: it took longer than ``timeout`` seconds; by default those of the settings.
        StreamError: the peer gave up.
    """

    def __init__(self, rpc: RPC, started: CallStarted, timeout: float | None) -> None:
        self._rpc, self._started = rpc, started
        self._seconds = rpc.settings.timeout if timeout is None else timeout
        self._given_up = False
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        rpc = self._rpc
        if not rpc.running:
            raise NodeClosed("this RPC is not running: use it inside `async with RPC(...) as rpc`")
        self._began = trio.current_time()
        self._scope = trio.CancelScope(deadline=self._began + self._seconds)
        rpc.under_way.add(self._scope)
        if rpc.trace is not None:
            rpc.trace(self._started)
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            swallowed = self._scope.__exit__(kind, error, trace)
            if self._scope.cancelled_caught:
                raise self._why_cancelled()
            if error is not None:
                self._error = error
            return bool(swallowed)
        except BaseException as raised:
            self._error = raised
            raise
        finally:
            self._rpc.ended(self._scope)
            if self._rpc.trace is not None:
                self._tell_end(self._rpc.trace)

    def catch(self, error: Exception) -> str:
        """Record a handler's exception, at the boundary of one request; what its caller is told."""
        self._error = error
        method, peer_id = self._started.method, self._started.peer_id
        if isinstance(error, HivemindError):
            logger.debug("%s failed for %s: %s", method, peer_id, error)
        else:
            logger.error("the handler of %s failed for %s", method, peer_id, exc_info=error)
        return text_of(error)

    def give_up(self) -> None:
        """The caller waits no more."""
        self._given_up = True
        self._scope.cancel()

    def _why_cancelled(self) -> HivemindError:
        method, peer_id = self._started.method, self._started.peer_id
        if not self._rpc.running:
            return NodeClosed(f"the node was shut down during a call of {method}")
        if self._given_up:
            return StreamError(f"{peer_id} gave up, or sent more than one request")
        return DeadlineExceeded(
            f"{peer_id} did not finish {method} within {self._seconds:g} s, and was told that nobody waits"
            " any more; give the call more time, or ask another peer"
        )

    def _tell_end(self, trace: Trace) -> None:
        error = self._error
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        trace(CallEnded(self._started, trio.current_time() - self._began, error))
