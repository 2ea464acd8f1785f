"""One message there, one message back, on a stream of its own."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import trio
from google.protobuf.message import DecodeError, Message

from hivemind_p2p.errors import MessageTooLarge, ProtocolViolation, StreamError
from hivemind_p2p.rpc.context import CallContext, M, UnaryHandler
from hivemind_p2p.rpc.failures import remote_error, text_of
from hivemind_p2p.rpc.framed import FramedStream
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.wire import calls
from hivemind_p2p.wire.framing import varint_header

Catch = Callable[[Exception, CallContext], str]


class UnaryCall:
    """One call that we make: :meth:`on` a stream that was opened for it.

    Args:
        limit: the most bytes of a whole message, ours and the peer's.

    Raises:
        MessageTooLarge: the request is above the limit.
    """

    def __init__(self, peer_id: bytes, method: str, request: Message, limit: int) -> None:
        self.method, self._limit = method, limit
        self._call_id = os.urandom(calls.CALL_ID_SIZE)
        self._data = request.SerializeToString()
        self._head = calls.unary_request_head(self._call_id, peer_id, method, len(self._data))
        size = len(self._head) + len(self._data)
        if size > limit:
            raise MessageTooLarge(f"a call of {method} with {size} bytes is above the limit of {limit}: stream it")

    async def on(self, stream: Stream, response_type: type[M]) -> M:
        """Ask and wait for the answer. Our half of the stream stays open: ending it means that we gave up.

        Raises:
            RemoteError, MessageTooLarge, ProtocolViolation, StreamError
        """
        framed = FramedStream(stream, varint_header, self._limit)
        refused: StreamError | None = None
        try:
            await framed.send(self._head, self._data)
        except StreamError as error:
            refused = error  # a callee that does not want to read on may have said why
        try:
            frame = await framed.receive()
        except StreamError as error:
            raise refused or error from None
        if frame is None:
            raise refused or StreamError(f"{stream.peer_id} ended the call of {self.method} without an answer")
        answer = calls.read_response(frame.body)
        if answer.call_id != self._call_id:
            raise ProtocolViolation(f"{stream.peer_id} answered another call than {self.method}")
        if isinstance(answer, calls.UnaryError):
            raise remote_error(answer.text, f"{self.method} of {stream.peer_id}")
        return parse(response_type, answer.data)


async def serve_unary(
    stream: Stream, context: CallContext, request_type: type[M], handler: UnaryHandler[M], limit: int, catch: Catch
) -> None:
    """Answer one call. The handler is cancelled when the caller ends or resets its half of the stream.

    Args:
        catch: makes of a handler's exception what the caller is told.
    """
    framed = FramedStream(stream, varint_header, limit)
    call_id = bytes(calls.CALL_ID_SIZE)
    async with trio.open_nursery() as nursery:
        try:
            frame = await framed.receive()
            if frame is None:
                return
            request = calls.read_request(frame.body)
            call_id = request.call_id
            message = parse(request_type, request.data)
        except (MessageTooLarge, ProtocolViolation) as error:
            await framed.send(calls.unary_error(call_id, text_of(error)))
            return
        nursery.start_soon(_cancel_when_given_up, framed, nursery.cancel_scope)
        head, data = await _answer(handler(message, context), call_id, context, limit, catch)
        await framed.send(head, data)
        nursery.cancel_scope.cancel()


async def _answer(
    response: Awaitable[Message], call_id: bytes, context: CallContext, limit: int, catch: Catch
) -> tuple[bytes, bytes]:
    try:
        data = (await response).SerializeToString()
        head = calls.unary_response_head(call_id, len(data))
        if len(head) + len(data) > limit:
            raise MessageTooLarge(f"the answer has {len(data)} bytes, more than the limit of {limit}: stream it")
    except Exception as error:  # the boundary of one request
        return calls.unary_error(call_id, catch(error, context)), b""
    return head, data


async def _cancel_when_given_up(framed: FramedStream, scope: trio.CancelScope) -> None:
    try:
        if await framed.receive() is not None:
            raise ProtocolViolation("bytes behind a request")
    except (StreamError, MessageTooLarge, ProtocolViolation):
        pass
    scope.cancel()


def parse(kind: type[M], data: bytearray) -> M:
    """A message of a method.

    Raises:
        ProtocolViolation: the bytes are none.
    """
    try:
        return kind.FromString(data)  # type: ignore[arg-type]  # takes a bytearray as it is
    except DecodeError:
        raise ProtocolViolation(f"{len(data)} bytes are not a {kind.DESCRIPTOR.name}") from None
