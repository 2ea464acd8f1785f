"""Whole swarms in plain memory, for tests (ours and yours): real calls and a real DHT, no sockets, no keys, no waiting.

::

    async def test_two_peers(autojump_clock):                # of pytest-trio: time passes when everybody waits
        world = World(latency=0.05, seed=1)
        async with world.network() as one, world.network() as other, RPC(one) as caller, RPC(other) as callee:
            one.add_addresses(other.peer_id, other.visible_maddrs)
            ...

``World`` is what peers share: latency, loss, partitions, death, from one seed. ``MemoryNetwork`` is what one peer has
of it, a ``transport.api.Network`` like the real ``Host``: it dials by the same rules, and its streams end, reset and
make their writers wait as the real ones do. What it leaves out is Noise and Yamux: for these, real hosts run over
``transport.memory``.
"""

from hivemind_p2p.testing.network import MemoryNetwork
from hivemind_p2p.testing.world import World

__all__ = ["MemoryNetwork", "World"]
