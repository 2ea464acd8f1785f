"""One message there, one message back, on a stream of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import trio

from hivemind_p2p.errors import MessageTooLarge, ProtocolViolation, RPCError, StreamError
from hivemind_p2p.rpc.budget import Share
from hivemind_p2p.rpc.context import CallContext, M, Message, UnaryHandler, pieces_of
from hivemind_p2p.rpc.failures import remote_error, text_of
from hivemind_p2p.rpc.framed import FramedStream
from hivemind_p2p.rpc.handling import Served, outcome, packed, parse
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.wire import calls
from hivemind_p2p.wire.expert_messages import Buffer
from hivemind_p2p.wire.framing import varint_header

Timed = Callable[[int, float], None]
"""Told how many bytes took how many seconds to come."""


_NO_CALL: Final = bytes(calls.CALL_ID_SIZE)
"""Answers a request that could not be read as far as its id."""


class UnaryCall:
    """One call that we make.

    Args:
        limit: the most bytes of a whole message, ours and the peer's.

    Raises:
        MessageTooLarge: the request is above the limit.
    """

    def __init__(self, peer_id: bytes, method: str, request: Message, limit: int) -> None:
        self.method, self._limit = method, limit
        self._call_id = os.urandom(calls.CALL_ID_SIZE)
        self.data = pieces_of(request)
        """The request alone."""
        length = sum(map(len, self.data))
        self._head = calls.unary_request_head(self._call_id, peer_id, method, length)
        self.size = len(self._head) + length
        """Bytes of the request."""
        if self.size > limit:
            raise MessageTooLarge(
                f"a call of {method} with {self.size} bytes is above the limit of {limit} (rpc.max_message_bytes): "
                "send less at once, or use the streaming call"
            )

    async def on(self, stream: Stream, response_type: type[M], timed: Timed | None = None) -> M:
        """Ask on ``stream``, and wait for the answer. Our half stays open: ending it means that we gave up.

        Raises:
            RemoteError, MessageTooLarge, ProtocolViolation, StreamError
        """
        framed = FramedStream(stream, varint_header, self._limit, timed=timed)
        refused: StreamError | None = None
        try:
            if not framed.send_nowait(self._head, *self.data):
                await framed.send(self._head, *self.data)
        except StreamError as error:
            refused = error  # who does not want to read on may have said why
        try:
            frame = await framed.receive()
        except StreamError as error:
            raise refused or error from None
        if frame is None:
            raise refused or StreamError(f"{stream.peer_id} ended the call of {self.method} without an answer")
        answer = calls.read_response(frame.body)
        if isinstance(answer, calls.UnaryError) and answer.call_id in (self._call_id, _NO_CALL):
            raise remote_error(answer.text, f"{self.method} of {stream.peer_id}")
        if isinstance(answer, calls.UnaryError) or answer.call_id != self._call_id:
            raise ProtocolViolation(
                f"{stream.peer_id} answered another call than the one of {self.method} that we made"
            )
        return parse(response_type, answer.data)


async def serve_unary(
    stream: Stream,
    context: CallContext,
    request_type: type[M],
    handler: UnaryHandler[M],
    served: Served,
    *,
    limit: int,
    timeout: float,
    share: Share,
    timed: Timed | None = None,
) -> None:
    """Answer one call. It is cancelled when the caller ends or resets its half of the stream.

    Args:
        served: is told of a handler's exception, and when the caller gives up.
        limit: the most bytes of a whole message, ours and the peer's.
        timeout: seconds that the request may take to come, and the answer to go.
        share: of the bytes that we hold for the caller.
        timed: told how fast a large request came.

    Raises:
        StreamError: the caller is not there any more, or too slow.
    """
    framed = FramedStream(stream, varint_header, limit, share.take, timed)
    call_id = _NO_CALL
    try:
        frame = framed.receive_nowait()
        if frame is None:
            with _patience(stream, timeout, "its request did not come"):
                frame = await framed.receive()
        if frame is None:
            raise StreamError(f"{stream.peer_id} asked for nothing")
        request = calls.read_request(frame.body)
        call_id = request.call_id
        message = parse(request_type, request.data)
    except RPCError as error:
        await _answer(framed, calls.unary_error(call_id, text_of(error)), [], timeout)
        return
    if framed.pending:
        raise StreamError(f"{stream.peer_id} sent more than one request")
    # Whatever comes now, the end or more, says that nobody waits for the answer.
    response = await outcome(handler, message, context, lambda: stream.when_readable(served.give_up))
    sent = packed(response, partial(calls.unary_response_head, call_id), limit, served)
    if isinstance(sent, str):
        await _answer(framed, calls.unary_error(call_id, sent), [], timeout)
    else:
        await _answer(framed, *sent, timeout)


async def _answer(framed: FramedStream, head: bytes, data: Sequence[Buffer], timeout: float) -> None:
    if framed.send_nowait(head, *data, last=True):
        return
    with _patience(framed.stream, timeout, "it did not take its answer"):
        await framed.send(head, *data)


@contextmanager
def _patience(stream: Stream, seconds: float, why: str) -> Iterator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise StreamError(f"{stream.peer_id} was given up on after {seconds:g} s: {why}")
