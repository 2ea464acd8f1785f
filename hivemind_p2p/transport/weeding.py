"""Connections to be rid of: those that another one replaced, and those that may be dead without our knowing.

They may be dead since our network changed, or the peer's, which then connects anew. TCP itself goes on trying for a
quarter of an hour, and whoever waits for an answer waits as long.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Sequence
from typing import Final

import trio

from hivemind_p2p.transport.connection import MuxedConnection
from hivemind_p2p.wire.peer_id import PeerID

_RETIRE_AFTER: Final = 5.0
_CHANGED: Final = "this machine's network changed"
_PATIENCE: Final = 5.0
"""Seconds that a peer may take to show that a connection lives that we doubt."""
_CROSS_DIALS: Final = 2.0
"""Seconds within which a second connection is rather a sign of a busy peer than of a dead connection."""
_PATIENCE_WHEN_BUSY: Final = 10.0


async def retire(connection: MuxedConnection, best: Callable[[PeerID], MuxedConnection | None]) -> None:
    """Close a connection that another one replaced, once it is idle for a while, unless it is in use again.

    Args:
        best: the connection in use to a peer.
    """
    while not connection.closed:
        await trio.sleep(_RETIRE_AFTER)
        if best(connection.peer_id) is connection:
            return
        if connection.idle and trio.current_time() - connection.used_at >= _RETIRE_AFTER:
            await connection.aclose()


def doubt(connections: Sequence[MuxedConnection], newest: MuxedConnection, nursery: trio.Nursery) -> None:
    """A peer connected anew. Where it did so because it has come to another network, it is not there any more at the
    ends of its older direct connections: it is asked, and they end if it does not answer.

    Args:
        nursery: in which it is asked.
    """
    for older in connections:
        if older is not newest and older.relay is None:
            young = newest.opened_at - older.opened_at < _CROSS_DIALS
            older.doubted = True  # from now on, not from when the task runs
            nursery.start_soon(older.survives, _PATIENCE_WHEN_BUSY if young else _PATIENCE, "the peer connected anew")


async def weed(connections: Sequence[MuxedConnection], own_ips: Collection[str]) -> list[MuxedConnection]:
    """Our network changed: end the connections that are dead, and those through relays with the ones to these.

    Nothing that is sent from an address that is gone gets out.

    Args:
        own_ips: the addresses of this machine.

    Returns:
        All connections that are gone now, the ones that were used last first.
    """
    async with trio.open_nursery() as nursery:
        for connection in connections:
            if connection.relay is not None:
                continue
            if connection.local_ip is not None and _is_lost(connection.local_ip, own_ips):
                connection.give_up(f"{_CHANGED}: it has no address {connection.local_ip} any more")
            else:
                nursery.start_soon(connection.survives, _PATIENCE, _CHANGED)
    relays = {connection.peer_id for connection in connections if connection.relay is None and not connection.closed}
    for connection in connections:
        if connection.relay is not None and connection.relay not in relays:
            connection.give_up(f"{_CHANGED}, and with it went the connection to the relay")
    gone = [connection for connection in connections if connection.closed]
    return sorted(gone, key=lambda connection: -connection.used_at)


def _is_lost(ip: str, own_ips: Collection[str]) -> bool:
    """Whether an address that we had is not ours any more. All of 127/8 is, and link-local ones are not listed."""
    address = ipaddress.ip_address(ip)
    return ip not in own_ips and not (address.is_loopback or address.is_link_local)
