"""identify 1.0.0, its push, and ping: what libp2p peers ask of each other first.

What a peer says here about itself is a hint: its addresses go to the address book, bounded; its peer id is the one
that the handshake proved, whatever it says.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from typing import Final

import trio
from google.protobuf.message import DecodeError
from libp2p.identity.identify.pb.identify_pb2 import Identify
from multiaddr import Multiaddr

from hivemind_p2p.errors import StreamEnded, StreamReset
from hivemind_p2p.transport.addresses import endpoint_of, read_maddr, split_peer
from hivemind_p2p.transport.api import AGENT, Connection, PeerDescription, Stream, StreamHandler

IDENTIFY: Final = "/ipfs/id/1.0.0"
PUSH: Final = "/ipfs/id/push/1.0.0"
PING: Final = "/ipfs/ping/1.0.0"
_LARGEST: Final = 64 * 1024
_MOST_PROTOCOLS: Final = 256
_PING_SIZE: Final = 32
_PROTOCOL_VERSION: Final = "ipfs/0.1.0"


def describe(
    *, public_key: bytes, listening: Sequence[Multiaddr], protocols: Iterable[str], observed: Multiaddr | None
) -> bytes:
    """Our answer to identify, behind its length.

    Args:
        observed: where the asker's connection comes from, as we see it.
    """
    message = Identify(
        protocol_version=_PROTOCOL_VERSION,
        agent_version=AGENT,
        public_key=public_key,
        listen_addrs=[split_peer(maddr)[0].to_bytes() for maddr in listening],
        observed_addr=observed.to_bytes() if observed is not None else b"",
        protocols=list(protocols),
    ).SerializeToString()
    length, prefix = len(message), bytearray()
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*prefix, length]) + message


async def read_description(stream: Stream) -> PeerDescription:
    """Read one identify message; malformed addresses in it are left out.

    Raises:
        StreamError: the stream failed, or what came is not an identify message.
    """
    length, shift = 0, 0
    while True:
        byte = (await stream.read_exactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
        if shift > 21:
            raise StreamReset(f"{stream.peer_id} sent an identify message without a sane length")
    if length > _LARGEST:
        raise StreamReset(f"{stream.peer_id} sent an identify message of {length} bytes; at most {_LARGEST} are sane")
    try:
        message = Identify.FromString(await stream.read_exactly(length))
    except DecodeError:
        raise StreamReset(f"{stream.peer_id} sent an identify message that is none") from None
    seen = [maddr for maddr in _maddrs([message.observed_addr]) if _has_ip(maddr)]
    return PeerDescription(
        agent=_text(message.agent_version),
        protocols=frozenset(map(_text, itertools.islice(message.protocols, _MOST_PROTOCOLS))),
        maddrs=tuple(_maddrs(message.listen_addrs)),
        observed=seen[0] if seen else None,
    )


def _has_ip(maddr: Multiaddr) -> bool:
    """Whether it is what can be seen of a connection: nobody comes from a name."""
    endpoint = endpoint_of(maddr)
    return endpoint is not None and endpoint.ip is not None


def _text(value: str | bytes) -> str:
    """A string of the message, which protobuf leaves as bytes where it is none."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def _maddrs(encoded: Iterable[bytes]) -> list[Multiaddr]:
    maddrs = []
    for raw in encoded:
        try:
            maddrs.append(split_peer(read_maddr(raw))[0])
        except ValueError:
            continue
    return maddrs


def ping_handler(idle_timeout: float) -> StreamHandler:
    """Echo 32 bytes as often as the peer likes, while it does so at least every ``idle_timeout`` seconds."""

    async def handler(stream: Stream) -> None:
        while True:
            with trio.move_on_after(idle_timeout) as scope:
                try:
                    data = await stream.read_exactly(_PING_SIZE)
                except StreamEnded:
                    return
                await stream.send_all(data)
            if scope.cancelled_caught:
                return

    return handler


async def round_trip(connection: Connection, times: int = 1) -> float:
    """Ping the peer of a connection; seconds of the quickest of ``times`` round trips. Bound it with a scope.

    Raises:
        ProtocolNotSupported, StreamError: the peer does not echo, or echoes something else.
    """
    best = math.inf
    async with await connection.open_stream(PING) as stream:
        for _ in range(times):
            sent, began = os.urandom(_PING_SIZE), trio.current_time()
            await stream.send_all(sent)
            if await stream.read_exactly(_PING_SIZE) != sent:
                raise StreamReset(f"{stream.peer_id} answered a ping with other bytes than it was sent")
            best = min(best, trio.current_time() - began)
    return best
