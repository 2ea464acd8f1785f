"""The seam between a connection and what multiplexes it, so that one muxer can take another's place."""

from __future__ import annotations

import abc
from collections.abc import Callable

from hivemind_p2p.transport.api import Stream, Traffic
from hivemind_p2p.wire.peer_id import PeerID


class MuxedStream(Stream):
    """A stream as a muxer makes it; ``protocol`` is ``""`` until somebody sets it."""

    @abc.abstractmethod
    def throw_away(self) -> None:
        """:meth:`reset`, which has nothing to wait for."""

    @abc.abstractmethod
    def send_first(self, data: bytes) -> None:
        """Send a few bytes without waiting, before anything else is sent. Never raises: if the stream is not there any
        more, whatever is done next tells."""


class Muxer(abc.ABC):
    """Many streams over one secured connection. Whoever makes it calls :meth:`run` in a task of its own."""

    peer_id: PeerID
    """Who is at the other end, as the handshake proved."""
    relayed: bool = False
    """Whether a relay carries it. Failures say so."""
    initiator: bool
    """Whether we were the client of the handshake. Of two who dialled each other at one moment, only one was."""

    @property
    @abc.abstractmethod
    def closed(self) -> bool:
        """Whether it can carry no more streams."""

    @property
    @abc.abstractmethod
    def stream_count(self) -> int:
        """Streams open now, of both sides."""

    @property
    @abc.abstractmethod
    def traffic(self) -> Traffic:
        """What it has carried so far."""

    @abc.abstractmethod
    async def run(self, on_stream: Callable[[MuxedStream], None]) -> None:
        """Carry the streams; returns when the connection has ended, for whatever reason.

        Args:
            on_stream: takes each stream that the peer opens, as soon as it comes; must not raise.
        """

    @abc.abstractmethod
    async def answers(self, seconds: float) -> bool:
        """Ask the peer whether it is there; whether anything came from it within so many seconds."""

    @abc.abstractmethod
    def give_up(self, reason: str) -> None:
        """End the connection at once, since it is known to be dead: whoever waits for it is told why."""

    @abc.abstractmethod
    async def open_stream(self) -> MuxedStream:
        """Open a stream on which no protocol has been agreed yet (``protocol`` is ``""``).

        Waits while too many of ours are open.

        Raises:
            ConnectionLost
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close the connection and every stream on it, within a second or so even when the peer does not answer."""
