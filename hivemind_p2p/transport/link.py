"""Bytes in and out of a connection, with as few copies and system calls as its kind allows.

Data is received into one large buffer that all connections of a Trio run share: whoever receives is done with it
before the next checkpoint, so an idle connection holds no memory for data to come, and the buffer stays in the
processor's cache. Sending is tried at once, by whoever has something to send, without going through the scheduler.
"""

from __future__ import annotations

import abc
import errno
import os
import socket
import struct
from contextlib import suppress
from typing import Final

import trio

_RECEIVE_SIZE: Final = 1 << 20
_STREAM_RECEIVE_SIZE: Final = 128 * 1024
_NO_LINGER: Final = struct.pack("ii", 1, 0)
_receive_buffer: Final[trio.lowlevel.RunVar[memoryview]] = trio.lowlevel.RunVar("receive_buffer")


class Link(abc.ABC):
    """An ordered, reliable stream of bytes. Failures are trio's ``BrokenResourceError`` and ``ClosedResourceError``."""

    @abc.abstractmethod
    async def receive(self, head: bytes) -> memoryview:
        """``head``, followed by what came next; by nothing when the other side has ended. At most 64 KiB of head.

        What is returned is valid until the next checkpoint.
        """

    @abc.abstractmethod
    def send_now(self, data: memoryview) -> int:
        """Send what can be sent without waiting; how much that was."""

    @abc.abstractmethod
    async def send_some(self, data: memoryview) -> int:
        """Wait until something can be sent, and send it; how much that was. ``data`` must not change meanwhile.

        Once cancelled, nobody can tell how much was sent: close the link then.
        """

    @abc.abstractmethod
    def abort(self) -> None:
        """What was not sent yet never will be: have :meth:`aclose` throw the connection away."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close it, without waiting for anything."""


class SocketLink(Link):
    """A link over a TCP socket, by the system's own calls."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._fd = stream.socket.fileno()

    async def receive(self, head: bytes) -> memoryview:
        begin = len(head)
        while True:
            await trio.lowlevel.wait_readable(self._open_fd())
            buffer = _shared_buffer()
            try:
                size = os.readv(self._open_fd(), [buffer[begin:]])
            except BlockingIOError:
                continue
            except OSError as error:
                raise _broken(error) from error
            buffer[:begin] = head
            return buffer[: begin + size]

    def send_now(self, data: memoryview) -> int:
        try:
            return os.write(self._open_fd(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _broken(error) from error

    async def send_some(self, data: memoryview) -> int:
        while True:
            await trio.lowlevel.wait_writable(self._open_fd())
            if size := self.send_now(data):
                return size

    def abort(self) -> None:
        reset_on_close(self._stream)

    async def aclose(self) -> None:
        self._fd = -1
        await trio.aclose_forcefully(self._stream)

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise trio.ClosedResourceError("this connection was closed")
        return self._fd

    def __repr__(self) -> str:
        return f"<SocketLink over {self._stream.socket!r}>"


class StreamLink(Link):
    """A link over any ``trio.abc.Stream``."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def receive(self, head: bytes) -> memoryview:
        data = await self._stream.receive_some(_STREAM_RECEIVE_SIZE)
        return memoryview(head + data if head else data)

    def send_now(self, data: memoryview) -> int:
        return 0

    async def send_some(self, data: memoryview) -> int:
        await self._stream.send_all(data)
        return len(data)

    def abort(self) -> None:
        pass  # closing by force throws away all that there is to throw away

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    def __repr__(self) -> str:
        return f"<StreamLink over {self._stream!r}>"


def reset_on_close(stream: trio.SocketStream) -> None:
    """Have a socket be gone once it is closed, and with it what it had still to send.

    Otherwise the system goes on for minutes to send what nobody takes, so that NATs remember a connection that there
    is not; and it keeps the pair of addresses, for a minute even when all was sent (TIME_WAIT). Who dials from the port
    that it listens on has no other pair to try again with.
    """
    with suppress(OSError, trio.ClosedResourceError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


def link_over(stream: trio.abc.Stream) -> Link:
    """The best link for a stream."""
    if isinstance(stream, trio.SocketStream) and hasattr(os, "readv"):  # Windows has no such call
        return SocketLink(stream)
    return StreamLink(stream)


def _shared_buffer() -> memoryview:
    try:
        return _receive_buffer.get()
    except LookupError:
        buffer = memoryview(bytearray(_RECEIVE_SIZE))
        _receive_buffer.set(buffer)
        return buffer


def _broken(error: OSError) -> trio.BrokenResourceError:
    code = error.errno if error.errno is not None else errno.EIO
    return trio.BrokenResourceError(os.strerror(code).lower())
