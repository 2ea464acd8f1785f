from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from multiaddr import Multiaddr

from hivemind_p2p.testing import World
from hivemind_p2p.transport.api import Network
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.memory import MemoryWire

LATENCY = 0.01


@pytest.fixture(params=["host", "memory"])
async def networks(request) -> AsyncIterator[tuple[Network, Network]]:
    """Two networks of one kind, of which the first knows the other's address: real hosts, or networks in memory."""
    async with AsyncExitStack() as stack:
        pair: list[Network] = []
        world, wire = World(latency=LATENCY), MemoryWire(latency=LATENCY)
        for number in (1, 2):
            if request.param == "memory":
                pair.append(await stack.enter_async_context(world.network()))
            else:
                host_maddrs = [Multiaddr(f"/ip4/10.0.0.{number}/tcp/1")]
                transport = wire.transport(f"10.0.0.{number}")
                host = Host(Identity.generate(), host_maddrs=host_maddrs, transport=transport)
                pair.append(await stack.enter_async_context(host))
        one, other = pair
        one.add_addresses(other.peer_id, other.visible_maddrs)
        yield one, other
