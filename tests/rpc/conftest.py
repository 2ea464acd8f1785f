from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from multiaddr import Multiaddr

from hivemind_p2p.rpc import RPC
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.memory import MemoryWire
from tests.transport.hosts import at_rest


@pytest.fixture
async def pair() -> AsyncIterator[tuple[RPC, RPC]]:
    """Two nodes on real streams in memory, of which one knows the other; tests ask for ``autojump_clock`` too."""
    wire = MemoryWire(latency=0.01)
    callee_host = Host(
        Identity.generate(), host_maddrs=[Multiaddr("/ip4/10.0.0.1/tcp/4001")], transport=wire.transport("10.0.0.1")
    )
    caller_host = Host(Identity.generate(), transport=wire.transport("10.0.0.2"))
    async with callee_host, caller_host, RPC(caller_host) as caller, RPC(callee_host) as callee:
        caller_host.add_addresses(callee_host.peer_id, callee_host.visible_maddrs)
        yield caller, callee


@pytest.fixture
async def acquainted(pair: tuple[RPC, RPC]) -> tuple[RPC, RPC]:
    """Two nodes that are connected and know what the other one speaks."""
    caller, callee = pair
    await caller.network.connect(callee.network.visible_maddrs[0])
    await at_rest(caller.network, callee.network)  # type: ignore[arg-type]
    return pair
