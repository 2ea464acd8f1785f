"""What a handler is told of the call that it serves, and what handlers look like."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias, TypeVar

from multiaddr import Multiaddr

from hivemind_p2p.wire.expert_messages import Buffer
from hivemind_p2p.wire.peer_id import PeerID


class Message(Protocol):
    """What travels: protobuf's messages, and those of ours that read and write the same bytes.

    One that has a method ``pieces`` is sent in these, without copying them.
    """

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """Its bytes."""

    @classmethod
    def FromString(cls, data: Any, /) -> Self:  # noqa: N802 - protobuf's name
        """Read one; raises protobuf's ``DecodeError``."""


M = TypeVar("M", bound=Message)


def pieces_of(message: Message) -> list[Buffer]:
    """The bytes of a message, in one piece or several."""
    pieces = getattr(message, "pieces", None)
    return [message.SerializeToString()] if pieces is None else pieces()


@dataclass(frozen=True)
class CallContext:
    """Who calls what.

    Attributes:
        peer_id: the caller, as its connection proved.
        remote_maddr: where it calls from, without ``/p2p``; None when that is not known.
        method: the method's name on the wire.
    """

    peer_id: PeerID
    remote_maddr: Multiaddr | None
    method: str


UnaryHandler: TypeAlias = Callable[[M, CallContext], Awaitable[Message] | Message]
"""One that has nothing to wait for may be a plain function, which is cheaper to serve."""
StreamHandler: TypeAlias = Callable[[AsyncIterator[M], CallContext], AsyncIterator[Message]]
