"""What a :class:`~.session.Session` tells of what the peer sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hivemind_p2p.transport.yamux.stream_state import StreamState


class StreamOpened(NamedTuple):
    """The peer opened a stream."""

    stream: StreamState


class StreamRefused(NamedTuple):
    """The peer wanted one more stream than it may hold open; it was told so."""

    stream_id: int


class DataReceived(NamedTuple):
    """A part of what the peer sent on a stream. It is ours to hold until it is reported as consumed."""

    stream: StreamState
    data: memoryview


class EndReceived(NamedTuple):
    """The peer will send no more on this stream."""

    stream: StreamState


class ResetReceived(NamedTuple):
    """The peer threw the stream away."""

    stream: StreamState


class StreamOverflowed(NamedTuple):
    """All streams together hold as much unread as one connection may make us hold, and this one got more: we threw it
    away."""

    stream: StreamState


class WindowOpened(NamedTuple):
    """More may be sent on this stream."""

    stream: StreamState


class PongReceived(NamedTuple):
    """Our ping was answered after this many seconds."""

    rtt: float


class GoAwayReceived(NamedTuple):
    """The peer takes no new streams; those that are open may go on."""

    code: int


class SessionFailed(NamedTuple):
    """The peer broke the protocol. Nothing that it sends is looked at any more; close the connection once the output,
    which says the same to the peer, has gone."""

    reason: str


Event = (
    StreamOpened
    | StreamRefused
    | DataReceived
    | EndReceived
    | ResetReceived
    | StreamOverflowed
    | WindowOpened
    | PongReceived
    | GoAwayReceived
    | SessionFailed
)
