"""An encrypted connection: pure ciphers over a link.

All whole messages that came are decrypted at once, and to where they are wanted, if somebody waits for them. A write is
encrypted into one buffer and sent at once; what the socket does not take waits here, and nothing else is written before
it. A write is never left half done by a cancellation, since no task that can be cancelled stands in the middle of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from hivemind_p2p.errors import ConnectionLost, TransportError
from hivemind_p2p.transport.link import Link
from hivemind_p2p.transport.negotiate import Asking
from hivemind_p2p.transport.noise.cipher import BadMessage, Buffer, Opener, Sealer, sealed_size, split

_BUFFER_SIZE: Final = 288 * 1024
"""One frame of the muxer, encrypted, and what is said beside it."""
_SPARE_BUFFERS: Final = 4
_spare_buffers: Final[trio.lowlevel.RunVar[list[memoryview]]] = trio.lowlevel.RunVar("spare_send_buffers")


@dataclass(frozen=True)
class Keys:
    """What a handshake leaves: one key for each direction."""

    send: bytes
    receive: bytes


class SecureChannel:
    """Messages to and from one peer. One task receives, one drains; anybody may write.

    Args:
        link: owned by this channel.
        keys: from the handshake.
        early: what came behind the handshake.
    """

    def __init__(self, link: Link, keys: Keys, early: bytes = b"") -> None:
        self._link = link
        self._sealer = Sealer(keys.send)
        self._opener = Opener(keys.receive)
        self._early = early
        self._rest = b""
        self._fed = False
        self._unread = b""
        self._asking: Asking | None = None
        self._pending = memoryview(b"")
        self._pending_buffer: memoryview | None = None

    @property
    def pending(self) -> bool:
        """Whether a part of the last write has still to go out: :meth:`drain_some` first, then write again."""
        return bool(self._pending)

    async def fetch(self) -> None:
        """Wait for more bytes. Then :meth:`open` messages until :meth:`next_size` is None, before the next checkpoint.

        Raises:
            ConnectionLost: the other side closed the connection, or it broke.
        """
        if self._unread:
            await trio.lowlevel.checkpoint()
        else:
            self._opener.feed(await self._receive())
            self._fed = True

    def next_size(self) -> int | None:
        """The plaintext size of the next message; None when not all of it has come.

        Raises:
            ConnectionLost: what came is no message.
        """
        if self._unread:
            return len(self._unread)
        try:
            size = self._opener.next_size()
        except BadMessage as error:
            raise ConnectionLost(str(error)) from None
        if size is None and self._fed:
            self._rest, self._fed = self._opener.rest(), False
        return size

    def open(self, size: int) -> bytes:
        """The plaintext of the next message, whose size it is.

        Raises:
            ConnectionLost: the message was tampered with.
        """
        if self._unread:
            unread, self._unread = self._unread, b""
            return unread
        try:
            return self._opener.open(size)
        except BadMessage as error:
            raise ConnectionLost(str(error)) from None

    def open_into(self, target: memoryview) -> bool:
        """Decrypt the next message, whose size is that of ``target``, into it; False when it must be opened otherwise.

        Raises:
            ConnectionLost: the message was tampered with. ``target`` may hold anything then.
        """
        if self._unread:
            return False
        try:
            self._opener.open_into(target)
        except BadMessage as error:
            raise ConnectionLost(str(error)) from None
        return True

    async def receive(self) -> list[bytes]:
        """The plaintext of what came next: whole messages, at least one.

        Raises:
            ConnectionLost: the other side closed the connection, it broke, or its bytes were tampered with.
        """
        messages: list[bytes] = []
        while not messages:
            await self.fetch()
            while (size := self.next_size()) is not None:
                messages.append(self.open(size))
        return messages

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Encrypt ``buffers`` and send what can be sent at once; not while :attr:`pending`. They may change afterwards.

        Raises:
            ConnectionLost
        """
        assert not self._pending, "what was written before has to go out first"
        messages = split(buffers)
        size = sealed_size(messages)
        buffer = _take_buffer(size)
        sealed = buffer[: self._sealer.seal(messages, buffer)]
        try:
            sent = self._link.send_now(sealed)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _lost(error) from None
        if sent == size:
            _give_back(buffer)
        else:
            self._pending, self._pending_buffer = sealed[sent:], buffer

    async def drain_some(self) -> None:
        """Send more of what is pending, once that is possible.

        Raises:
            ConnectionLost
        """
        try:
            sent = await self._link.send_some(self._pending)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _lost(error) from None
        self._pending = self._pending[sent:]
        if not self._pending and self._pending_buffer is not None:
            _give_back(self._pending_buffer)
            self._pending_buffer = None

    async def receive_some(self) -> bytes:
        """The plaintext of what came next, joined: for what is agreed on before a muxer takes over.

        Raises:
            ConnectionLost
        """
        return b"".join(await self.receive())

    async def ask(self, protocol: str) -> None:
        """Ask for what the muxer speaks and go on as if the peer had agreed; :meth:`settle` finds out.

        Raises:
            ConnectionLost
        """
        self._asking = Asking(protocol)
        await self.send_all(self._asking.opening)

    async def settle(self) -> None:
        """Wait for the answer to what was asked, if anything was, and take it off what comes.

        Raises:
            ConnectionLost: the peer does not agree, or as :meth:`receive`.
        """
        while (asking := self._asking) is not None:
            try:
                if asking.receive(await self.receive_some()):
                    self._asking = None
                    self.unread(asking.rest)
            except ConnectionLost:
                raise
            except TransportError as error:
                raise ConnectionLost(str(error)) from None

    def unread(self, data: bytes) -> None:
        """Give back what was received and belongs to who receives next."""
        self._unread = data + self._unread

    async def send_all(self, data: bytes) -> None:
        """Write ``data`` and wait until it went out: for what is agreed on before a muxer takes over.

        Raises:
            ConnectionLost
        """
        self.write([data])
        await trio.lowlevel.checkpoint()
        while self._pending:
            await self.drain_some()

    def abort(self) -> None:
        """Have :meth:`aclose` throw the connection away, with what was not sent yet."""
        self._link.abort()

    async def aclose(self) -> None:
        """Close the connection, without waiting for anything."""
        await self._link.aclose()

    async def _receive(self) -> memoryview:
        if self._early:
            early, self._early = self._early, b""
            return memoryview(early)
        try:
            data = await self._link.receive(self._rest)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _lost(error) from None
        if len(data) == len(self._rest):
            raise ConnectionLost("the peer closed it" + (" in the middle of a message" if self._rest else ""))
        return data

    def __repr__(self) -> str:
        return f"<SecureChannel over {self._link!r}, {len(self._pending)} bytes pending>"


def _lost(error: trio.BrokenResourceError | trio.ClosedResourceError) -> ConnectionLost:
    return ConnectionLost(str(error.__cause__ or error) or "it broke")


def _take_buffer(size: int) -> memoryview:
    if size > _BUFFER_SIZE:
        return memoryview(bytearray(size))
    spare = _spare_buffers.get([])
    return spare.pop() if spare else memoryview(bytearray(_BUFFER_SIZE))


def _give_back(buffer: memoryview) -> None:
    if len(buffer) != _BUFFER_SIZE:
        return
    try:
        spare = _spare_buffers.get()
    except LookupError:
        spare = []
        _spare_buffers.set(spare)
    if len(spare) < _SPARE_BUFFERS:
        spare.append(buffer)
