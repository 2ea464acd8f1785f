"""multistream-select 1.0.0: agreeing on a protocol by name.

Messages are lines behind a varint length. The side that asks sends its greeting and its wish in one write: one round
trip, where the stock client takes two.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final, Protocol

from hivemind_p2p.errors import ProtocolNotSupported, StreamReset

GREETING: Final = "/multistream/1.0.0"
_REFUSAL: Final = "na"
_LONGEST_LINE: Final = 1024
_MOST_WISHES: Final = 32


class Channel(Protocol):
    """What a negotiation runs over."""

    async def read_exactly(self, size: int) -> bytes: ...

    async def send_all(self, data: bytes) -> None: ...


def line(text: str) -> bytes:
    """One message."""
    body = text.encode() + b"\n"
    if len(body) > _LONGEST_LINE:
        raise ValueError(
            f"a protocol name has at most {_LONGEST_LINE - 1} bytes, not {len(body) - 1}: {text[:60]!r}..."
        )
    return bytes([len(body)]) + body if len(body) < 0x80 else bytes([len(body) & 0x7F | 0x80, len(body) >> 7]) + body


async def ask(channel: Channel, protocol: str) -> None:
    """Ask the other side to speak ``protocol``.

    Raises:
        ProtocolNotSupported: it does not.
        StreamReset: it does not speak multistream.
        Whatever ``channel`` raises.
    """
    await channel.send_all(line(GREETING) + line(protocol))
    if (answer := await _read_line(channel)) != GREETING:
        raise StreamReset(f"the other side answered {answer[:60]!r} instead of {GREETING!r}")
    answer = await _read_line(channel)
    if answer == _REFUSAL:
        raise ProtocolNotSupported(f"the peer does not speak {protocol!r}; check its version and what it serves")
    if answer != protocol:
        raise StreamReset(f"the other side answered {answer[:60]!r} when asked for {protocol!r}")


async def answer(channel: Channel, supported: Container[str]) -> str:
    """Let the other side choose among ``supported``; the name of what it chose.

    Raises:
        StreamReset: it does not speak multistream, or found nothing in a reasonable number of tries.
        Whatever ``channel`` raises.
    """
    if (greeting := await _read_line(channel)) != GREETING:
        raise StreamReset(f"the other side began with {greeting[:60]!r} instead of {GREETING!r}")
    await channel.send_all(line(GREETING))  # at once: some wait for it before they say what they want
    for _ in range(_MOST_WISHES):
        wish = await _read_line(channel)
        if wish in supported:
            await channel.send_all(line(wish))
            return wish
        await channel.send_all(line(_REFUSAL))
    raise StreamReset(f"the other side asked for {_MOST_WISHES} protocols that we do not speak")


async def _read_line(channel: Channel) -> str:
    length, shift = 0, 0
    while True:
        byte = (await channel.read_exactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
        if shift > 14:
            raise StreamReset("the other side does not speak multistream: its first message has no sane length")
    if not 1 <= length <= _LONGEST_LINE:
        raise StreamReset(
            f"the other side sent a multistream message of {length} bytes; at most {_LONGEST_LINE} are sane"
        )
    body = await channel.read_exactly(length)
    if not body.endswith(b"\n"):
        raise StreamReset("the other side does not speak multistream: its message does not end a line")
    return body[:-1].decode("utf-8", "replace")
