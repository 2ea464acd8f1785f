"""Connections as people look at them: direct or through which relay, since when, how fast, how much."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.errors import TransportError
from hivemind_p2p.transport.api import Connection, Traffic
from hivemind_p2p.transport.identify import round_trip
from hivemind_p2p.wire.peer_id import PeerID

_AT_ONCE: Final = 32
_LONGEST_AGENT: Final = 64


@dataclass(frozen=True)
class ConnectionReport:
    """One connection at one moment."""

    peer_id: PeerID
    relay: PeerID | None
    """The relay that it goes through; None: it is direct."""
    maddr: Multiaddr | None
    """The address at the other end, without ``/p2p``; a circuit address when it is relayed."""
    outbound: bool
    """Whether we dialled it."""
    in_use: bool
    """Whether new streams to the peer go here; a peer may have several connections."""
    seconds: float
    """How long it has been open."""
    rtt: float | None
    """Seconds of a round trip, measured just now; None: no answer in time."""
    traffic: Traffic
    """Bytes that it has carried."""
    agent: str
    """The peer's software, as it says; without what could not be printed."""

    def to_json(self) -> dict[str, Any]:
        """The same in strings and numbers."""
        return {
            "peer_id": self.peer_id.base58,
            "path": "direct" if self.relay is None else "relayed",
            "relay": self.relay.base58 if self.relay is not None else None,
            "address": str(self.maddr) if self.maddr is not None else None,
            "outbound": self.outbound,
            "in_use": self.in_use,
            "open_for_s": round(self.seconds, 3),
            "rtt_ms": None if self.rtt is None else round(1000 * self.rtt, 3),
            "bytes_received": self.traffic.received,
            "bytes_sent": self.traffic.sent,
            "agent": self.agent,
        }


async def report(connections: Sequence[Connection], timeout: float) -> list[ConnectionReport]:
    """Report on connections, those to one peer one after the other, the one in use first, as a ``Network`` has them.

    Args:
        timeout: the most seconds that measuring round trips may take; 0 measures none.
    """
    trips: dict[Connection, float] = {}
    room = trio.CapacityLimiter(_AT_ONCE)

    async def measure(connection: Connection) -> None:
        async with room:
            with suppress(TransportError):
                trips[connection] = await round_trip(connection)

    with trio.move_on_after(timeout):
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(measure, connection)
    seen: set[PeerID] = set()
    reports = []
    for each in connections:
        reports.append(
            ConnectionReport(
                peer_id=each.peer_id,
                relay=each.relay,
                maddr=each.remote_maddr,
                outbound=each.outbound,
                in_use=each.peer_id not in seen and not each.closed,
                seconds=trio.current_time() - each.opened_at,
                rtt=trips.get(each),
                traffic=each.traffic,
                agent=_printable(each.description.agent if each.description is not None else ""),
            )
        )
        seen.add(each.peer_id)
    return reports


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST_AGENT])
