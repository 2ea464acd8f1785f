"""Keeping what is too large from relays that would cut it off: it waits for a direct connection.

The relays of go-libp2p and js-libp2p carry 128 KiB, or two minutes, of a connection and then end it, and every call on
it. Such a circuit is known by its limit. What fits goes over it; where that was used up, over a new one. What would
never fit is not begun: it waits until there is a direct connection, and fails in words when none comes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from hivemind_p2p.errors import DialError, RelayLimited
from hivemind_p2p.transport.connection import MuxedConnection, usable

_PATIENCE: Final = 20.0
"""Seconds to wait for a direct connection: three rounds of hole punching take half of it."""
_SMALL: Final = 4096
"""Bytes that go over any circuit, whatever its relay says."""
_BEFORE_THE_DEADLINE: Final = 0.05
"""The part of the caller's time that is left for saying why it was in vain."""


async def with_room(
    tight: MuxedConnection,
    carries: int,
    best: Callable[[], MuxedConnection | None],
    dial: Callable[[], Awaitable[MuxedConnection]],
    changed: Callable[[], Awaitable[None]],
) -> MuxedConnection:
    """A connection to a peer over which so many bytes may go, waiting for it as long as the caller waits.

    Args:
        tight: the one in use, which has too little room.
        best: the one in use at the time.
        dial: makes a new one.
        changed: waits until there is another connection to anybody.

    Raises:
        DialError: there is none at all any more.
        RelayLimited: there is none that carries so much.
    """
    began = trio.current_time()
    left = trio.current_effective_deadline() - began
    with trio.move_on_after(min(_PATIENCE, (1 - _BEFORE_THE_DEADLINE) * left)):
        while True:
            connection = best() or await dial()
            if connection.room >= carries:
                return connection
            tight = connection
            assert tight.limit is not None
            if max(carries, usable(tight.limit)) <= _SMALL:  # no relay is so mean
                return tight
            if carries > usable(tight.limit):
                await changed()
                continue
            try:
                fresh = await dial()  # for several callers at once; who comes last may find it full
            except DialError:  # then the old one: it may just suffice
                return best() or tight
            if fresh.room >= carries or carries <= _SMALL:
                return fresh
    raise _too_large(tight, carries, trio.current_time() - began)


def _too_large(tight: MuxedConnection, carries: int, waited: float) -> RelayLimited:
    assert tight.limit is not None
    assert tight.relay is not None
    return RelayLimited(
        f"{tight.peer_id} is reached only through the relay {tight.relay}, which carries {tight.limit.size:.0f} bytes "
        f"on a connection; {carries} were to be sent or received, and no direct connection came in {waited:.1f} s. "
        "Send less at once, forward a port on either side, or use a relay of your own (`hivemind-p2p bootstrap`), "
        "which carries any amount",
        relay=tight.relay.base58,
        size=tight.limit.size,
    )
