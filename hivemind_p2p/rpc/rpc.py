"""``RPC``: the calls of one node, made and served."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar

import trio
from google.protobuf.message import Message

from hivemind_p2p.config import RPCSettings
from hivemind_p2p.errors import DeadlineExceeded, HivemindError, RPCError
from hivemind_p2p.rpc.context import CallContext, M, StreamHandler, UnaryHandler
from hivemind_p2p.rpc.failures import text_of
from hivemind_p2p.rpc.item_queue import ItemQueue
from hivemind_p2p.rpc.streaming import StreamCall, serve_stream
from hivemind_p2p.rpc.unary import UnaryCall, serve_unary
from hivemind_p2p.transport.api import Network, Stream
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Message)
ITEM_ROOM: Final = 2**16
"""What an item may have beyond ``max_message_bytes``: hivemind fills that with tensor bytes alone."""


class RPC:
    """Remote calls over a network: ``async with RPC(network, settings) as rpc``. hivemind 1.1's on the wire.

    Leaving it stops to serve: calls under way, of both directions, are cancelled. Methods have hivemind's names,
    ``Service.method``; one in a namespace is named by :func:`~hivemind_p2p.wire.calls.protocol_id`.
    """

    def __init__(self, network: Network, settings: RPCSettings | None = None) -> None:
        self.network = network
        self.settings = settings if settings is not None else RPCSettings()
        self._methods: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for method in list(self._methods):
            self.unregister(method)

    def register(self, method: str, request_type: type[M], handler: UnaryHandler[M]) -> None:
        """Serve a method: ``async def handler(request, context) -> response``.

        Raises:
            RPCError: it is served already.
        """
        limit = self.settings.max_message_bytes

        async def serve(stream: Stream, context: CallContext) -> None:
            await serve_unary(stream, context, request_type, handler, limit, self._caught)

        self._serve_method(method, serve)

    def register_stream(self, method: str, request_type: type[M], handler: StreamHandler[M]) -> None:
        """Serve a method that takes or gives items: ``async def handler(requests, context): ... yield response``.

        Raises:
            RPCError: it is served already.
        """
        settings = self.settings

        async def serve(stream: Stream, context: CallContext) -> None:
            queue = ItemQueue(settings.max_queued_items, settings.max_queued_bytes)
            limit = settings.max_message_bytes + ITEM_ROOM
            await serve_stream(stream, context, request_type, handler, limit, queue, self._caught)

        self._serve_method(method, serve)

    def unregister(self, method: str) -> None:
        """Stop to serve a method; calls of it that are under way go on."""
        self._methods.discard(method)
        self.network.set_stream_handler(method, None)

    async def call(
        self, peer_id: PeerID, method: str, request: Message, response_type: type[R], *, timeout: float | None = None
    ) -> R:
        """Call a method of a peer, connecting first when needed.

        Args:
            timeout: seconds for the whole call; by default ``settings.timeout``.

        Raises:
            DeadlineExceeded: no answer in time.
            RemoteError: the peer's handler failed.
            MessageTooLarge: the request or the answer is above ``settings.max_message_bytes``.
            ProtocolViolation: the answer is garbage.
            DialError, ProtocolNotSupported, StreamError: the peer cannot be reached, or does not serve the method.
        """
        call = UnaryCall(peer_id.to_bytes(), method, request, self.settings.max_message_bytes)
        with self._deadline(peer_id, method, timeout):
            stream = await self.network.open_stream(peer_id, method)
            try:
                response = await call.on(stream, response_type)
            except BaseException:
                await stream.reset()
                raise
            await stream.aclose()
            return response
        raise AssertionError  # either returned or raised

    def stream_call(
        self,
        peer_id: PeerID,
        method: str,
        requests: AsyncIterable[Message],
        response_type: type[R],
        *,
        timeout: float | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[R]]:
        """Call a method of a peer that takes or gives items::

            async with rpc.stream_call(peer_id, method, requests, Response) as responses:
                async for response in responses: ...

        Leaving the block before the last response tells the peer that nobody waits any more.

        Args:
            requests: the items to send; sent as fast as the peer takes them.
            timeout: seconds for the whole block; by default ``settings.timeout``.

        Raises:
            What :meth:`call` raises, and what ``requests`` raises, when a response is asked for.
        """
        return self._stream_call(peer_id, method, requests, response_type, timeout)

    @asynccontextmanager
    async def _stream_call(
        self, peer_id: PeerID, method: str, requests: AsyncIterable[Message], kind: type[R], timeout: float | None
    ) -> AsyncIterator[AsyncIterator[R]]:
        with self._deadline(peer_id, method, timeout):
            stream = await self.network.open_stream(peer_id, method)
            call = StreamCall(stream, kind, self.settings.max_message_bytes + ITEM_ROOM)
            failure: Exception | None = None
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call.send_all, requests)
                    try:
                        yield call
                    except Exception as error:  # raised below: the nursery would wrap it in a group
                        failure = error
                    nursery.cancel_scope.cancel()
            finally:
                await stream.reset()
            if failure is not None:
                raise failure

    def _serve_method(self, method: str, serve: Callable[[Stream, CallContext], Awaitable[None]]) -> None:
        if method in self._methods:
            raise RPCError(f"{method} is served already; unregister it first")
        self.network.set_stream_handler(method, partial(self._serve, serve))
        self._methods.add(method)

    async def _serve(self, serve: Callable[[Stream, CallContext], Awaitable[None]], stream: Stream) -> None:
        connections = self.network.connections(stream.peer_id)
        remote = connections[0].remote_maddr if connections else None
        await serve(stream, CallContext(stream.peer_id, remote, stream.protocol))

    def _caught(self, error: Exception, context: CallContext) -> str:
        """Record a handler's exception; what its caller is told."""
        if isinstance(error, HivemindError):
            logger.debug("%s failed for %s: %s", context.method, context.peer_id, error)
        else:
            logger.error("the handler of %s failed for %s", context.method, context.peer_id, exc_info=error)
        return text_of(error)

    @contextmanager
    def _deadline(self, peer_id: PeerID, method: str, timeout: float | None) -> Iterator[None]:
        seconds = self.settings.timeout if timeout is None else timeout
        with trio.move_on_after(seconds) as scope:
            yield
        if scope.cancelled_caught:
            raise DeadlineExceeded(f"{peer_id} did not finish {method} within {seconds:g} s")

    def __repr__(self) -> str:
        return f"<RPC of {self.network.peer_id!r}, {len(self._methods)} methods>"
