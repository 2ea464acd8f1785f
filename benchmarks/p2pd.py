"""A p2pd (hivemind's libp2p daemon, in Go) and just enough of its control protocol, over its Unix socket.

The daemon is driven without hivemind's own client, so that what is measured is the daemon and two hops over a Unix
socket, which is the least that a program in another language pays for it.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from multiaddr import Multiaddr

from benchmarks.report import ROOT
from hivemind_p2p.wire.peer_id import PeerID

UNIX = 400  # multicodec
IDENTIFY, CONNECT, STREAM_OPEN, STREAM_HANDLER, DISCONNECT = 0, 1, 2, 3, 7
Handler = Callable[[trio.SocketStream], Awaitable[None]]


def binary() -> Path | None:
    """The daemon out of hivemind's wheel; None where ``scripts/setup --interop`` was not run."""
    return next(iter((ROOT / ".venv-interop").glob("lib/python3*/site-packages/hivemind/hivemind_cli/p2pd")), None)


class P2PD:
    """One running daemon."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self._folder = folder

    async def identify(self) -> tuple[PeerID, Multiaddr]:
        """Who it is, and an address of it."""
        fields = await self._identity()
        return PeerID(dict(fields)[1]), Multiaddr(next(value for number, value in fields if number == 2))

    async def maddrs(self) -> list[Multiaddr]:
        """Where it says that it is reached."""
        return [Multiaddr(value) for number, value in await self._identity() if number == 2]

    async def connect(self, peer_id: PeerID, maddr: Multiaddr) -> None:
        """Connect to a peer."""
        request = _bytes_field(1, peer_id.to_bytes()) + _bytes_field(2, maddr.to_bytes())
        await self._ask(_varint_field(1, CONNECT) + _bytes_field(2, request))

    async def disconnect(self, peer_id: PeerID) -> None:
        """Close the connections to a peer."""
        await self._ask(_varint_field(1, DISCONNECT) + _bytes_field(7, _bytes_field(1, peer_id.to_bytes())))

    async def open_stream(self, peer_id: PeerID, protocol: str) -> trio.SocketStream:
        """A new stream, once the peer has agreed to the protocol."""
        wish = _bytes_field(1, peer_id.to_bytes()) + _bytes_field(2, protocol.encode())
        stream = await self._request(_varint_field(1, STREAM_OPEN) + _bytes_field(3, wish))
        await _response(stream)
        return stream

    async def serve(self, protocol: str, handler: Handler, nursery: trio.Nursery) -> None:
        """Let ``handler`` serve a protocol."""
        path = self._folder / "handler.sock"
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(str(path))
        listener.listen(1024)

        async def accepted(stream: trio.SocketStream) -> None:
            async with stream:
                await _message(stream)  # who calls
                await handler(stream)

        nursery.start_soon(trio.serve_listeners, accepted, [trio.SocketListener(listener)])
        address = _varint(UNIX) + _varint(len(str(path))) + str(path).encode()  # as Go writes it: with the first slash
        wish = _bytes_field(1, address) + _bytes_field(2, protocol.encode()) + _varint_field(3, 0)
        await self._ask(_varint_field(1, STREAM_HANDLER) + _bytes_field(4, wish))

    async def _identity(self) -> list[tuple[int, bytes]]:
        stream = await self._request(_varint_field(1, IDENTIFY))
        body = dict(_fields(await _response(stream)))[4]
        await stream.aclose()
        return list(_fields(body))

    async def _ask(self, request: bytes) -> None:
        stream = await self._request(request)
        await _response(stream)
        await stream.aclose()

    async def _request(self, request: bytes) -> trio.SocketStream:
        stream = await trio.open_unix_socket(str(self._folder / "control.sock"))
        await stream.send_all(_varint(len(request)) + request)
        return stream


@asynccontextmanager
async def running(*options: str, inside: Sequence[str] = ()) -> AsyncIterator[P2PD]:
    """Start a daemon, and stop it.

    Args:
        options: default: it listens on loopback, and neither uses relays nor is one.
        inside: what its command line begins with, to run it somewhere else.
    """
    program = binary()
    if program is None:
        raise SystemExit("p2pd is not here; `scripts/setup --interop` installs it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [*inside, str(program), "-listen", f"/unix{folder}/control.sock"]
        command += options or ("-hostAddrs=/ip4/127.0.0.1/tcp/0", "-relay=0")
        process = subprocess.Popen(  # noqa: ASYNC220  # at once
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            daemon = P2PD(process, folder)
            while True:
                try:
                    await daemon.identify()
                    break
                except OSError:
                    if process.poll() is not None:
                        raise SystemExit(f"p2pd ended with {process.returncode}: {command}") from None
                    await trio.sleep(0.01)
            yield daemon
        finally:
            process.kill()
            process.wait()


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protobuf message that hold bytes; small numbers are given as one byte."""
    position = 0

    def varint() -> int:
        nonlocal position
        number = shift = 0
        while True:
            byte = message[position]
            position += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while position < len(message):
        key = varint()
        value = varint()
        if key & 7 == 0:
            yield key >> 3, bytes([value & 0xFF])
        else:
            yield key >> 3, message[position : position + value]
            position += value


async def _message(stream: trio.SocketStream) -> bytes:
    size = shift = 0
    while True:
        byte = (await stream.receive_some(1))[0]
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    message = bytearray()
    while len(message) < size:
        message += await stream.receive_some(size - len(message))
    return bytes(message)


async def _response(stream: trio.SocketStream) -> bytes:
    message = await _message(stream)
    fields = dict(_fields(message))
    if fields[1] != b"\0":
        raise RuntimeError(f"p2pd refused: {fields.get(2)!r}")
    return message
