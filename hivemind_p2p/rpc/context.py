"""What a handler is told of the call that it serves, and what handlers look like."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from google.protobuf.message import Message
from multiaddr import Multiaddr

from hivemind_p2p.wire.peer_id import PeerID

M = TypeVar("M", bound=Message)


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
