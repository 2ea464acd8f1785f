"""A byte stream as libp2p's security layer wants it: ``IRawConnection`` over any ``trio.abc.Stream``.

Stock ``TrioTCPStream`` returns what a packet happened to hold, and the layers above give up after 100 partial reads;
it also knows no IPv6 remote address. Here a read returns all it was asked for, from one buffer, and says so when it
cannot.
"""

from __future__ import annotations

from typing import Final

import trio
from libp2p.abc import IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from multiaddr import Multiaddr

from hivemind_p2p.transport.addresses import endpoint_of
from hivemind_p2p.transport.link import reset_on_close

_CHUNK: Final = 128 * 1024
_LARGEST_READ: Final = 1 << 20  # Noise messages end at 64 KiB: no honest peer makes us collect more


class RawConnection(IRawConnection):
    """A connection before it is secured.

    Args:
        stream: the bytes; owned by this connection.
        remote: the address at the other end, without ``/p2p``; None when it is not known.
        initiator: whether we dialled.
    """

    def __init__(self, stream: trio.abc.Stream, remote: Multiaddr | None, *, initiator: bool) -> None:
        self.stream = stream
        self.remote = remote
        self.is_initiator = initiator
        self.local_ip: str | None = None
        """Our IP address on it, where it has one of its own."""
        self.aside = False
        """Whether we dialled from another port than the one that we listen on."""
        self._buffer = bytearray()

    async def read(self, n: int | None = None) -> bytes:
        """Exactly ``n`` bytes; whatever is there next for None.

        Raises:
            IncompleteReadError: the other side ended before.
            ConnectionClosedError: the connection broke, or we closed it.
        """
        wanted = 1 if n is None else n
        if wanted > _LARGEST_READ:
            raise ConnectionClosedError(f"the peer announced {wanted} bytes at once; at most {_LARGEST_READ} are sane")
        while len(self._buffer) < wanted:
            try:
                data = await self.stream.receive_some(_CHUNK)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError(f"the connection broke: {error.__cause__ or error}") from error
            if not data:
                raise IncompleteReadError(
                    f"the other side closed the connection {len(self._buffer)} bytes into an expected {wanted}",
                    expected_bytes=wanted,
                    received_bytes=len(self._buffer),
                )
            self._buffer += data
        size = len(self._buffer) if n is None else n
        result = bytes(self._buffer[:size])
        del self._buffer[:size]
        return result

    async def write(self, data: bytes) -> None:
        """Send all of ``data``.

        Raises:
            ConnectionClosedError: the connection broke, or we closed it.
        """
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(f"the connection broke: {error.__cause__ or error}") from error

    def take_rest(self) -> bytes:
        """What came and was not read: for who goes on with ``stream`` instead of this connection."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def unread(self, data: bytes) -> None:
        """Give back what was read and belongs to who reads next."""
        self._buffer[:0] = data

    receive_some = read
    send_all = write

    async def close(self) -> None:
        """Give the connection up: a socket is reset."""
        if isinstance(self.stream, trio.SocketStream):
            reset_on_close(self.stream)
        await trio.aclose_forcefully(self.stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        endpoint = endpoint_of(self.remote) if self.remote is not None else None
        return (endpoint.host, endpoint.port) if endpoint is not None else None

    def get_transport_addresses(self) -> list[Multiaddr]:
        return [self.remote] if self.remote is not None else []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT

    def __repr__(self) -> str:
        return f"<RawConnection {'to' if self.is_initiator else 'from'} {self.remote}>"
