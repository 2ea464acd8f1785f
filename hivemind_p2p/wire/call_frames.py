"""What travels on a channel of small calls: a protocol of our own, spoken where both peers know it.

Every frame stands behind a varint length: its kind, one byte; the number of the call, a varint, which the caller
chooses; then, for a call, a varint and so many bytes of the method's name; the rest is the message. There is one frame
each way for a call, answers in any order, and a cancellation for a caller that does not wait any more. Who is called
may end the channel when no call is under way; what comes then is not executed, and has to be asked in another way.
"""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import Final, NamedTuple

from hivemind_p2p.errors import ProtocolViolation
from hivemind_p2p.wire.framing import read_varint, varint

CHANNEL: Final = "/hivemind_p2p/calls/1.0.0"
"""The libp2p protocol."""
MAX_REQUEST: Final = 2**17
"""The most bytes of a call, there or back as far as that is known; larger ones have a stream of their own."""
MAX_ENVELOPE: Final = 2**10
"""The most bytes around a message."""
MAX_CALLS: Final = 256
"""The most calls under way on one channel. Who is called takes twice as many: some may have been given up, and not
have ended."""
_LONGEST_NAME: Final = 1023
"""Bytes of a method's name: what multistream-select allows for a stream of its own."""
_LARGEST_NUMBER: Final = 2**63


class Kind(enum.IntEnum):
    """What a frame is."""

    CALL = 0
    """From the caller: please do."""
    CANCEL = 1
    """From the caller: nobody waits for the answer any more."""
    ANSWER = 2
    """From the callee: the response."""
    ERROR = 3
    """From the callee: its handler failed; the message is text."""
    NOT_SERVED = 4
    """From the callee: there is no such method. Nothing was executed."""


class CallFrame(NamedTuple):
    """One frame. ``method`` is empty unless it is a call; ``data`` belongs to whoever gets it."""

    kind: Kind
    number: int
    method: str
    data: bytearray


def head(kind: Kind, number: int, size: int, method: str = "") -> bytes:
    """What stands before the ``size`` bytes of a frame's message.

    Raises:
        ValueError: the method's name is too long for any protocol.
    """
    inner = varint(number) if kind is not Kind.CALL else varint(number) + _name(method)
    return varint(1 + len(inner) + size) + _KINDS[kind] + inner


@lru_cache(256)
def _name(method: str) -> bytes:
    name = method.encode()
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"a method's name has at most {_LONGEST_NAME} bytes, not {len(name)}: {method[:60]!r}...")
    return varint(len(name)) + name


def read(body: bytearray) -> CallFrame:
    """What the body of a frame says; it is used up.

    Raises:
        ProtocolViolation: nothing that is known.
    """
    kind = _BY_NUMBER.get(body[0]) if body else None
    found = read_varint(body, 1)
    if kind is None or found is None or found[0] >= _LARGEST_NUMBER:
        raise ProtocolViolation("a frame on a channel of calls has no kind that is known, or no number")
    number, position = found
    method = ""
    if kind is Kind.CALL:
        length = read_varint(body, position)
        if length is None or length[1] + length[0] > len(body):
            raise ProtocolViolation("a call on a channel ends within the name of its method")
        if length[0] > _LONGEST_NAME:
            raise ProtocolViolation(f"a call on a channel names a method in {length[0]} bytes")
        end = length[1] + length[0]
        method, position = _text(bytes(body[length[1] : end])), end
    del body[:position]
    return CallFrame(kind, number, method, body)


@lru_cache(256)
def _text(name: bytes) -> str:
    return name.decode(errors="replace")


_KINDS: Final = {kind: bytes([kind]) for kind in Kind}
_BY_NUMBER: Final = {int(kind): kind for kind in Kind}
