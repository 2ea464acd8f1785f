"""A stream on which the protocol is agreed on while it is used already.

Who opens a stream for a protocol that the peer is known to speak does not wait for the answer: the lines of the
negotiation travel with the first write, and the first read takes the answer off. A call then costs one round trip.
Who answers such a peer, which did not wait, sends the answer with its own first write.

When the peer does not speak the protocol after all, the first read raises ``ProtocolNotSupported``, and so does a write
that failed because the peer threw the stream away. Nothing was executed: the peer did not get as far as a handler.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio

from hivemind_p2p.errors import ProtocolNotSupported, StreamReset
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.transport.muxer import MuxedStream
from hivemind_p2p.transport.negotiate import Asking

_JOINED_BELOW = 64 * 1024
"""A first write up to this size is copied behind the lines, so that both are one frame."""
_MOST_KNOWN = 4096


class NegotiatedStream(Stream):
    """A stream over a muxer's.

    Args:
        inner: the muxer's.
        protocol: what is, or will be, agreed on.
        unsent: lines to travel with the first write.
        asking: what the answer goes to; None when there is none to wait for.
        early: what came behind the negotiation.
        known: protocols that the peer speaks; corrected by what it answers.
        unheard: streams of which the peer has not heard, which this one leaves when it does.
    """

    def __init__(
        self,
        inner: MuxedStream,
        protocol: str,
        *,
        unsent: bytes = b"",
        asking: Asking | None = None,
        early: bytes = b"",
        known: set[str] | None = None,
        unheard: set[NegotiatedStream] | None = None,
    ) -> None:
        self.peer_id = inner.peer_id
        self.protocol = inner.protocol = protocol
        self._inner = inner
        self._unsent = unsent
        self._asking = asking
        self._early = early
        self._known = known if known is not None else set()
        self._unheard = unheard
        self._refusal: ProtocolNotSupported | StreamReset | None = None
        self._settling = False

    async def settle(self) -> None:
        """Wait until the peer has agreed.

        Raises:
            ProtocolNotSupported, StreamError
        """
        if self._refusal is not None:
            raise type(self._refusal)(str(self._refusal))
        if self._settling:
            raise trio.BusyResourceError(f"another task is reading from the stream to {self.peer_id}")
        self._settling = True
        try:
            while (asking := self._asking) is not None:
                self.announce()
                data = await self._inner.receive_some()
                if not data:
                    raise StreamReset(f"{self.peer_id} ended the stream instead of agreeing to {self.protocol!r}")
                self._hear(asking, data)
        finally:
            self._settling = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        if self._unsent and view.nbytes < _JOINED_BELOW:
            view = memoryview(b"".join((self._take_unsent(), view)))
        self.announce()
        try:
            await self._inner.send_all(view)
        except StreamReset:
            if self._asking is not None and not self._settling:  # otherwise the reader is told
                await self.settle()  # what came before the reset may say why; nothing more will come to wait for
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._asking is not None:
            await self.settle()
        if self._early:
            await trio.lowlevel.checkpoint_if_cancelled()
            return self._take_early(max_bytes)
        return await self._inner.receive_some(max_bytes)

    def receive_nowait(self, max_bytes: int) -> bytes:
        if self._asking is not None:
            return b""
        return self._take_early(max_bytes) if self._early else self._inner.receive_nowait(max_bytes)

    def when_readable(self, callback: Callable[[], object] | None) -> None:
        if self._early and callback is not None:
            callback()
        elif self._asking is not None and callback is not None and self._refusal is None:
            self._inner.when_readable(partial(self._answered, self._asking, callback))
        else:
            self._inner.when_readable(callback)

    def send_nowait(self, data: bytes | bytearray, *, last: bool = False) -> bool:
        if self._unsent:
            data = self._unsent + data
        try:
            sent = self._inner.send_nowait(data, last=last)
        except StreamReset:
            return False  # sending with waiting, which fails as well, says why
        if sent and self._unsent:
            self._take_unsent()
        return sent

    async def read_into(self, buffer: memoryview) -> None:
        if self._asking is not None:
            await self.settle()
        if self._early:
            buffer = memoryview(buffer).cast("B")
            early = self._take_early(len(buffer))
            buffer[: len(early)] = early
            buffer = buffer[len(early) :]
        await self._inner.read_into(buffer)

    async def send_eof(self) -> None:
        self.announce()
        await self._inner.send_eof()

    def close(self) -> None:
        if self._asking is None:
            self.announce()
        self._take_unsent()
        self._inner.close()

    async def reset(self) -> None:
        self._take_unsent()
        await self._inner.reset()

    def __repr__(self) -> str:
        return repr(self._inner)

    def announce(self) -> None:
        """Send what waits for the first write, now."""
        if self._unsent:
            self._inner.send_first(self._take_unsent())

    def _hear(self, asking: Asking, data: bytes) -> None:
        """Take in what came of the answer."""
        try:
            if asking.receive(data):
                self._early = asking.rest
                self._asking = None
                if len(self._known) < _MOST_KNOWN:
                    self._known.add(self.protocol)
        except (ProtocolNotSupported, StreamReset) as error:
            self._known.discard(self.protocol)
            self._refusal = error
            raise

    def _answered(self, asking: Asking, callback: Callable[[], object]) -> None:
        """Something came to whoever asked to be told: first comes the answer, which is not for it."""
        data = self._inner.receive_nowait(_JOINED_BELOW)
        if data:
            with suppress(ProtocolNotSupported, StreamReset):  # reading raises it
                self._hear(asking, data)
            if self._refusal is None:
                self.when_readable(callback)
                return
        callback()

    def _take_early(self, most: int | None) -> bytes:
        early = self._early
        if most is None or len(early) <= most:
            self._early = b""
            return early
        self._early = early[most:]
        return early[:most]

    def _take_unsent(self) -> bytes:
        unsent, self._unsent = self._unsent, b""
        if self._unheard is not None:
            self._unheard.discard(self)
        return unsent
