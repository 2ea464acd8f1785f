"""Protobuf messages behind their length, as all protocols of this package send them, and the addresses in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from multiaddr import Multiaddr

from hivemind_p2p.errors import StreamReset
from hivemind_p2p.transport.addresses import read_maddr, split_peer
from hivemind_p2p.transport.api import Stream

M = TypeVar("M", bound=Message)
LARGEST: Final = 4096
"""Bytes of one message, as the specifications of circuit relay and DCUtR say."""


def encode(message: Message) -> bytes:
    """A message behind its length as a varint."""
    body = message.SerializeToString()
    length, prefix = len(body), bytearray()
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*prefix, length]) + body


async def send(stream: Stream, message: Message) -> None:
    """Send one message. Raises StreamError."""
    await stream.send_all(encode(message))


async def receive(stream: Stream, kind: type[M], *, largest: int = LARGEST) -> M:
    """Read one message, and not a byte more.

    Raises:
        StreamReset: what came is not such a message, or too large.
        StreamError: the stream failed.
    """
    length, shift = 0, 0
    while True:
        byte = (await stream.read_exactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
        if shift > 21:
            raise StreamReset(f"{stream.peer_id} sent a message without a sane length on {stream.protocol}")
    if length > largest:
        raise StreamReset(f"{stream.peer_id} sent {length} bytes on {stream.protocol}; at most {largest} are sane")
    try:
        return kind.FromString(await stream.read_exactly(length))
    except DecodeError:
        raise StreamReset(f"{stream.peer_id} sent something else than a {kind.__name__}") from None


def maddrs_in(encoded: Iterable[bytes], limit: int) -> list[Multiaddr]:
    """The addresses of a message, without ``/p2p`` at their end; malformed ones and those above ``limit`` left out."""
    maddrs: list[Multiaddr] = []
    for raw in encoded:
        if len(maddrs) >= limit:
            break
        try:
            maddrs.append(split_peer(read_maddr(raw))[0])
        except ValueError:
            continue
    return maddrs
