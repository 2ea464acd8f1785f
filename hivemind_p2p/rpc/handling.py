"""From a request's bytes to those of its answer, whatever carries them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from google.protobuf.message import DecodeError

from hivemind_p2p.errors import MessageTooLarge, ProtocolViolation
from hivemind_p2p.rpc.context import CallContext, M, Message, UnaryHandler, pieces_of
from hivemind_p2p.wire.expert_messages import Buffer


class Served(Protocol):
    """The call that is served."""

    def catch(self, error: Exception) -> str:
        """Record a handler's exception; what the caller is told."""

    def give_up(self) -> None:
        """Cancel it, for the caller waits no more."""


def parse(kind: type[M], data: bytearray) -> M:
    """A message of a method.

    Raises:
        ProtocolViolation: the bytes are none.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        raise ProtocolViolation(f"{len(data)} bytes are not a {kind.__name__}") from None


async def outcome(
    handler: UnaryHandler[M], request: M, context: CallContext, before_waiting: Callable[[], object]
) -> Message | Exception:
    """What a handler returned, or raised.

    Args:
        before_waiting: called if it has to be waited for; otherwise it is too late to give up.
    """
    try:
        response = handler(request, context)
        if not isinstance(response, Awaitable):
            return response
        before_waiting()
        return await response
    except Exception as error:  # the boundary of one request
        return error


def packed(
    response: Message | Exception, head: Callable[[int], bytes], limit: int, served: Served
) -> tuple[bytes, list[Buffer]] | str:
    """An answer as it travels: its head, for so many bytes, and its data. Text: what the caller is told instead.

    Args:
        limit: the most bytes of it all.
    """
    try:
        if isinstance(response, Exception):
            raise response
        data = pieces_of(response)
        length = sum(map(len, data))
        first = head(length)
        if (size := len(first) + length) > limit:
            raise MessageTooLarge(
                f"an answer of {size} bytes is above the limit of {limit}: ask for less, or stream it"
            )
    except Exception as error:  # what the handler raised, or it returned what cannot be sent
        return served.catch(error)
    return first, data
