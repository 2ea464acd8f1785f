"""Which connections outlive a change of network: none from an address that is gone, others if the peer says so."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import trio

from hivemind_p2p.transport.connection import MuxedConnection

_CHANGED: Final = "this machine's network changed"


async def weed(
    connections: Sequence[MuxedConnection], own_ips: Collection[str], patience: float
) -> list[MuxedConnection]:
    """End the direct connections that are dead; those through relays end with them.

    Nothing that is sent from an address that is gone gets out, and nobody is told: without this, TCP goes on trying
    for a quarter of an hour.

    Args:
        own_ips: the addresses of this machine.
        patience: seconds for a peer to say that it is there.

    Returns:
        All connections that are gone now, the ones that were used last first.
    """
    async with trio.open_nursery() as nursery:
        for connection in connections:
            if connection.relay is not None:
                continue
            if connection.local_ip is not None and connection.local_ip not in own_ips:
                connection.give_up(f"{_CHANGED}: it has no address {connection.local_ip} any more")
            else:
                nursery.start_soon(connection.survives, patience, _CHANGED)
    gone = [connection for connection in connections if connection.closed]
    return sorted(gone, key=lambda connection: -connection.used_at)
