"""Items there, items back, on a stream of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Final

import trio

from hivemind_p2p.errors import MessageTooLarge, ProtocolViolation, RPCError, StreamError
from hivemind_p2p.rpc.budget import Share
from hivemind_p2p.rpc.context import CallContext, M, Message, StreamHandler, pieces_of
from hivemind_p2p.rpc.failures import LONGEST_TEXT, remote_error
from hivemind_p2p.rpc.framed import SMALL, FramedStream
from hivemind_p2p.rpc.handling import Served, parse
from hivemind_p2p.rpc.item_queue import ItemQueue
from hivemind_p2p.rpc.unary import Timed
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.wire import calls
from hivemind_p2p.wire.expert_messages import Buffer

READ_ON_SECONDS: Final = 10.0
READ_ON_BYTES: Final = 2**26
"""How long, and how much, we read on of a stream that has failed. A caller who listens stops long before."""


class StreamCall(AsyncIterator[M]):
    """One call that we make: :meth:`send_all` in one task; in another, iterate over the responses."""

    def __init__(self, stream: Stream, response_type: type[M], limit: int, timed: Timed | None = None) -> None:
        self._framed = FramedStream(stream, calls.item_header, limit, timed=timed)
        self._response_type = response_type
        self._limit = limit
        self._failure: Exception | None = None
        self._reading: trio.CancelScope | None = None

    async def send_all(self, requests: AsyncIterable[Message]) -> None:
        """Send the items, then their end. What goes wrong is raised where the responses are read."""
        try:
            async with _closing(requests):
                async for request in requests:
                    await self._framed.send(b"", *item(request, self._limit))
            await self._framed.send(calls.END_OF_ITEMS)
        except StreamError:
            pass  # the callee may end before our items do; if it failed, reading tells
        except Exception as error:  # not swallowed: the reader raises it
            self._failure = error
            if self._reading is not None:
                self._reading.cancel()

    async def __anext__(self) -> M:
        frame = None
        if self._failure is None:
            with trio.CancelScope() as self._reading:
                frame = await self._framed.receive()
            self._reading = None
        if self._failure is not None:
            raise self._failure
        if frame is None:
            raise StopAsyncIteration
        answer = calls.read_item(frame)
        if isinstance(answer, calls.ErrorItem):
            stream = self._framed.stream
            raise remote_error(answer.text, f"{stream.protocol} of {stream.peer_id}")
        return parse(self._response_type, answer.data)


async def serve_stream(
    stream: Stream,
    context: CallContext,
    request_type: type[M],
    handler: StreamHandler[M],
    served: Served,
    *,
    limit: int,
    queue: ItemQueue,
    share: Share,
    timed: Timed | None = None,
) -> None:
    """Answer one call. The handler is cancelled when the caller ends or resets its half of the stream.

    Args:
        served: is told of a handler's exception.
        limit: the most bytes of an item, ours and the peer's.
        queue: keeps what came and was not asked for yet.
        share: of the bytes that we hold for the caller; what the handler took is its own affair.
        timed: told how fast large items come.

    Raises:
        StreamError: the caller is not there any more. In a group, as nurseries do.
    """
    framed = FramedStream(stream, calls.item_header, limit, share.take, timed)
    failed = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_take_items, framed, queue)
        responses = _outcomes(handler, _Requests(queue, request_type, share), context, limit)
        async with aclosing(responses):
            async for response in responses:
                if isinstance(response, Exception):
                    failed = True
                    await framed.send(calls.error_item(served.catch(response)))
                else:
                    await framed.send(b"", *response)
        nursery.cancel_scope.cancel()
    if failed and not queue.complete:
        await _read_on(stream)


async def _read_on(stream: Stream) -> None:
    """Throw away what a caller sends who may not have heard of the failure yet.

    Closing the stream instead would take it from him: hivemind's p2pd then breaks the pipe that its client still writes
    to, and what lies in there unread is lost. Whoever has heard of it ends the stream.
    """
    left = READ_ON_BYTES
    with trio.move_on_after(READ_ON_SECONDS), suppress(StreamError):
        while left > 0 and (data := await stream.receive_some()):
            left -= len(data)


async def _outcomes(
    handler: StreamHandler[M], requests: AsyncIterator[M], context: CallContext, limit: int
) -> AsyncGenerator[list[Buffer] | Exception, None]:
    """A handler's responses as items, and how it failed if it did: kept apart from how sending them may fail."""
    try:
        responses = handler(requests, context)
        async with _closing(responses):
            async for response in responses:
                yield item(response, limit)
    except Exception as error:  # the boundary of one request
        yield error


class _Requests(AsyncIterator[M]):
    """What a handler iterates over."""

    def __init__(self, queue: ItemQueue, kind: type[M], share: Share) -> None:
        self._queue, self._kind, self._share = queue, kind, share

    async def __anext__(self) -> M:
        data = await self._queue.get()
        if data is None:
            raise StopAsyncIteration
        if len(data) > SMALL:
            self._share.give_back(len(data))
        return parse(self._kind, data)


@asynccontextmanager
async def _closing(items: AsyncIterable[object]) -> AsyncIterator[None]:
    """Close a generator that is not used up, so that its ``finally`` runs now and in this task."""
    try:
        yield
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()


def item(message: Message, limit: int) -> list[Buffer]:
    """A message as an item: head, and data in pieces.

    Raises:
        MessageTooLarge
    """
    data = pieces_of(message)
    size = sum(map(len, data))
    if size > limit:
        raise MessageTooLarge(f"an item of {size} bytes is above the limit of {limit}: send it in parts")
    return [calls.item_head(size), *data]


async def _take_items(framed: FramedStream, queue: ItemQueue) -> None:
    """Fill the queue; then wait for the caller to go away."""
    peer = framed.stream.peer_id
    while True:
        try:
            frame = await framed.receive()
            received = None if frame is None else calls.read_item(frame)
        except RPCError as error:
            queue.end(error)
            return
        if received is None:
            raise StreamError(f"{peer} gave up")
        if queue.ended:
            raise StreamError(f"{peer} sent more behind the end of its items")
        if isinstance(received, calls.Item):
            await queue.put(received.data)
        elif received.text:
            queue.end(ProtocolViolation(f"an error came instead of an item: {received.text[:LONGEST_TEXT]}"))
        else:
            queue.end()
