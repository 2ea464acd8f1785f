"""Frames on a stream: the shell around ``wire.framing``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from hivemind_p2p.errors import StreamEnded
from hivemind_p2p.rpc.link_speed import LARGE
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.wire.expert_messages import Buffer
from hivemind_p2p.wire.framing import Frame, FrameReader, HeaderReader

SMALL: Final = 2**14
"""Bytes that are asked for when it is not known what comes: a small message whole, little of a large one."""
_JOIN_BELOW: Final = 2**16
"""Pieces smaller than this are copied behind each other, so that they go out at once."""


class FramedStream:
    """A stream of frames in both directions. One task may receive while another sends.

    Args:
        read_header: which framing.
        limit: the most bytes that a received body may have.
        take: waits for room for so many bytes; asked before a body is read that is not ``SMALL``.
        timed: told how many bytes of a large body took how many seconds to come.
    """

    def __init__(
        self,
        stream: Stream,
        read_header: HeaderReader,
        limit: int,
        take: Callable[[int], Awaitable[None]] | None = None,
        timed: Callable[[int, float], None] | None = None,
    ) -> None:
        self.stream = stream
        self._reader = FrameReader(read_header, limit)
        self._take = take
        self._taken = False
        self._timed = timed
        self._since = 0.0

    async def receive(self) -> Frame | None:
        """The next frame; None when the peer ended its half.

        Raises:
            MessageTooLarge, ProtocolViolation: the peer sent what it must not.
            StreamEnded: the peer ended its half within a frame.
            StreamError
        """
        while (frame := self._reader.pop()) is None:
            if (coming := self._reader.under_way) > SMALL:
                if self._take is not None and not self._taken:
                    await self._take(coming)
                    self._taken = True
                if not self._since and coming > LARGE:
                    self._since = trio.current_time()
            room = self._reader.room()
            if room is not None and len(room) > SMALL:
                with room:
                    await self.stream.read_into(room)
                self._reader.filled()
            else:
                del room
                data = await self.stream.receive_some(SMALL)
                if data:
                    self._reader.feed(data)
                elif self._reader.between_frames:
                    return None
                else:
                    raise StreamEnded(f"{self.stream.peer_id} ended the stream within a message")
        self._taken = False
        if self._since:
            if self._timed is not None:
                self._timed(len(frame.body) - SMALL, trio.current_time() - self._since)
            self._since = 0.0
        return frame

    @property
    def pending(self) -> bool:
        """Whether more has come than the frames that were received."""
        return self._reader.pending

    def receive_nowait(self) -> Frame | None:
        """The next frame, if it is small and has come; see :meth:`receive`."""
        if data := self.stream.receive_nowait(SMALL):
            self._reader.feed(data)
        return self._reader.pop()

    def send_nowait(self, head: bytes, *pieces: Buffer, last: bool = False) -> bool:
        """Send one small frame, and close the stream behind the ``last``, if that takes no waiting.

        Returns:
            Whether it did; False: nothing was sent, use :meth:`send`.

        Raises:
            StreamError
        """
        return sum(map(len, pieces)) < _JOIN_BELOW and self.stream.send_nowait(b"".join((head, *pieces)), last=last)

    async def send(self, head: bytes, *pieces: Buffer) -> None:
        """Send one frame.

        Raises:
            StreamError
        """
        small = bytearray(head)
        for piece in pieces:
            if len(piece) < _JOIN_BELOW:
                small += piece
            else:
                if small:
                    await self.stream.send_all(bytes(small))
                    small.clear()
                await self.stream.send_all(memoryview(piece))
        if small:
            await self.stream.send_all(bytes(small))
