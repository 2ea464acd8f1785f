"""multistream-select 1.0.0: agreeing on a protocol by name. Two pure state machines, and the shell that runs them.

https://github.com/multiformats/multistream-select. Messages are lines behind a varint length. Both sides greet; the one
that asks names a protocol; the other one repeats it, or says ``na`` and is asked for another.

1. The side that asks sends its greeting and its wish at once, without waiting for the other greeting.
2. It may send what it wants to say behind them, when it knows that the other side speaks the protocol (``streams``).
3. The side that answers says all it can say to what it got, in one piece. It greets who only greeted: some wait for it.
"""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache
from typing import Final, Protocol

from hivemind_p2p.errors import ProtocolNotSupported, StreamReset

GREETING: Final = "/multistream/1.0.0"
_REFUSAL: Final = "na"
_LONGEST_LINE: Final = 1024
_MOST_WISHES: Final = 32


class Channel(Protocol):
    """What a negotiation runs over."""

    async def receive_some(self) -> bytes:
        """What comes next; raises at the end."""

    def unread(self, data: bytes) -> None:
        """Give back what was received and belongs to who reads next."""

    async def send_all(self, data: bytes) -> None: ...


def line(text: str) -> bytes:
    """One message."""
    body = text.encode() + b"\n"
    if len(body) > _LONGEST_LINE:
        raise ValueError(
            f"a protocol name has at most {_LONGEST_LINE - 1} bytes, not {len(body) - 1}: {text[:60]!r}..."
        )
    return bytes([len(body)]) + body if len(body) < 0x80 else bytes([len(body) & 0x7F | 0x80, len(body) >> 7]) + body


@lru_cache(1024)
def opening_for(protocol: str) -> bytes:
    """What the side that asks sends first; who speaks the protocol answers with the same bytes."""
    return _GREETING_LINE + line(protocol)


_GREETING_LINE: Final = line(GREETING)


class Asking:
    """The side that wants ``protocol``. Send :attr:`opening` first."""

    def __init__(self, protocol: str) -> None:
        self.opening: Final = opening_for(protocol)
        self.rest = b""
        """What came behind the answer."""
        self._protocol = protocol
        self._lines = _Lines()
        self._greeted = False

    def receive(self, data: bytes) -> bool:
        """Take in what came; whether it has agreed.

        Raises:
            ProtocolNotSupported: it does not speak the protocol.
            StreamReset: it does not speak multistream.
        """
        if data.startswith(self.opening) and self._lines.empty and not self._greeted:  # nearly always: all in one piece
            self.rest = data[len(self.opening) :]
            return True
        self._lines.feed(data)
        while (answer := self._lines.next()) is not None:
            if not self._greeted:
                if answer != GREETING:
                    raise StreamReset(f"the other side answered {answer[:60]!r} instead of {GREETING!r}")
                self._greeted = True
            elif answer == self._protocol:
                self.rest = self._lines.rest()
                return True
            elif answer == _REFUSAL:
                raise ProtocolNotSupported(
                    f"the peer does not speak {self._protocol!r}; check its version and what it serves"
                )
            else:
                raise StreamReset(f"the other side answered {answer[:60]!r} when asked for {self._protocol!r}")
        return False


class Answering:
    """The side that speaks the ``supported`` protocols. Send what :meth:`take_output` returns."""

    def __init__(self, supported: Container[str]) -> None:
        self.protocol: str | None = None
        """What the other side chose."""
        self.rest = b""
        """What came behind its choice."""
        self._supported = supported
        self._lines = _Lines()
        self._greeted = False
        self._wishes = 0
        self._output = bytearray()

    def receive(self, data: bytes) -> bool:
        """Take in what came; whether a protocol was chosen.

        Raises:
            StreamReset: it does not speak multistream, or found nothing in a reasonable number of tries.
        """
        if not self._greeted and self._lines.empty and self._chosen_at_once(data):
            return True
        self._lines.feed(data)
        while self.protocol is None and (wish := self._lines.next()) is not None:
            if not self._greeted:
                if wish != GREETING:
                    raise StreamReset(f"the other side began with {wish[:60]!r} instead of {GREETING!r}")
                self._greeted = True
                self._output += _GREETING_LINE
            elif wish in self._supported:
                self.protocol = wish
                self.rest = self._lines.rest()
                self._output += line(wish)
            else:
                self._wishes += 1
                if self._wishes == _MOST_WISHES:
                    raise StreamReset(f"the other side asked for {_MOST_WISHES} protocols that we do not speak")
                self._output += line(_REFUSAL)
        return self.protocol is not None

    def _chosen_at_once(self, data: bytes) -> bool:
        """Nearly always: the greeting and a wish that we grant come in one piece."""
        begin = len(_GREETING_LINE) + 1
        if not data.startswith(_GREETING_LINE) or len(data) < begin or data[begin - 1] >= 0x80:
            return False
        end = begin + data[begin - 1]
        wish = data[begin : end - 1].decode("utf-8", "replace")
        if data[end - 1 : end] != b"\n" or wish not in self._supported:
            return False
        self.protocol, self.rest = wish, data[end:]
        self._output += data[:end]
        return True

    def take_output(self) -> bytes:
        """What to send now."""
        output = bytes(self._output)
        self._output.clear()
        return output


async def ask(channel: Channel, protocol: str) -> None:
    """Ask the other side to speak ``protocol``.

    Raises:
        ProtocolNotSupported: it does not.
        StreamReset: it does not speak multistream.
        Whatever ``channel`` raises.
    """
    asking = Asking(protocol)
    await channel.send_all(asking.opening)
    while not asking.receive(await channel.receive_some()):
        pass
    channel.unread(asking.rest)


async def answer(channel: Channel, supported: Container[str]) -> str:
    """Let the other side choose among ``supported``; the name of what it chose.

    Raises:
        StreamReset: it does not speak multistream, or found nothing in a reasonable number of tries.
        Whatever ``channel`` raises.
    """
    answering = Answering(supported)
    while answering.protocol is None:
        answering.receive(await channel.receive_some())
        if output := answering.take_output():
            await channel.send_all(output)
    channel.unread(answering.rest)
    return answering.protocol


class _Lines:
    """Cuts what came into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def empty(self) -> bool:
        return not self._data

    def feed(self, data: bytes) -> None:
        self._data += data

    def next(self) -> str | None:
        """The next message; None when it has not come whole. Raises StreamReset when it can be none."""
        data = self._data
        if not data:
            return None
        head, length = 1, data[0]
        if length >= 0x80:
            if len(data) < 2:
                return None
            head, length = 2, length & 0x7F | data[1] << 7
        if not 1 <= length <= _LONGEST_LINE:
            raise StreamReset(
                f"the other side does not speak multistream: its message has no length from 1 to {_LONGEST_LINE}"
            )
        if len(data) < head + length:
            return None
        body = bytes(data[head : head + length])
        if not body.endswith(b"\n"):
            raise StreamReset("the other side does not speak multistream: its message does not end a line")
        del data[: head + length]
        return body[:-1].decode("utf-8", "replace")

    def rest(self) -> bytes:
        return bytes(self._data)
