"""What the tests of the session share: a session with usual limits, and two that talk to each other in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from hivemind_p2p.transport.yamux.events import DataReceived, Event
from hivemind_p2p.transport.yamux.frames import HEADER, HEADER_SIZE
from hivemind_p2p.transport.yamux.session import Session
from hivemind_p2p.transport.yamux.stream_state import StreamState

KIB = 1024
MIB = 1024 * KIB


def session(
    *, initiator: bool = True, max_inbound: int = 256, max_window: int = 16 * MIB, budget: int = 64 * MIB
) -> Session:
    return Session(initiator=initiator, max_inbound=max_inbound, max_window=max_window, budget=budget)


def output(one: Session) -> bytes:
    """What it has to send, as one string."""
    return b"".join(one.take_output())


def parse(data: bytes) -> list[tuple[int, int, int, int]]:
    """``(type, flags, stream id, length)`` of every frame; payloads are skipped."""
    found, position = [], 0
    while position < len(data):
        version, kind, flags, stream_id, length = HEADER.unpack_from(data, position)
        assert version == 0
        position += HEADER_SIZE + (length if kind == 0 else 0)
        found.append((kind, flags, stream_id, length))
    assert position == len(data)
    return found


def feed(one: Session, data: bytes, cuts: Iterable[int] = (), now: float = 0.0) -> list[Event]:
    """Give ``data`` to a session, cut at these places."""
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    events: list[Event] = []
    for begin, end in pairwise(places):
        events += one.receive(data[begin:end], now)
    return events


def merged(events: Sequence[Event]) -> list[tuple[object, ...]]:
    """Events as plain tuples, streams by their id, data that follows data of the same stream joined."""
    plain: list[tuple[object, ...]] = []
    for event in events:
        values = [value.id if isinstance(value, StreamState) else value for value in event]
        if isinstance(event, DataReceived):
            values[1] = bytes(event.data)
            if plain and plain[-1][:2] == (DataReceived, values[0]):
                plain[-1] = (DataReceived, values[0], plain[-1][2] + values[1])
                continue
        plain.append((type(event), *values))
    return plain
