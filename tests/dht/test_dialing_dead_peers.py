"""The dialer asks the DHT where a peer is, and the DHT dials: over real hosts, in memory."""

from __future__ import annotations

import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p.dht import DHTNode
from hivemind_p2p.errors import DialError
from hivemind_p2p.rpc import RPC
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.memory import MemoryWire


async def test_dialling_a_dead_peer_does_not_wait_for_a_question_to_that_peer(autojump_clock) -> None:
    wire = MemoryWire(latency=0.01)
    nodes: list[DHTNode] = []
    scopes: list[trio.CancelScope] = []

    async def run(number: int, task_status: trio.TaskStatus[None]) -> None:
        listen = [Multiaddr(f"/ip4/10.0.0.{number}/tcp/4001")]
        host = Host(Identity.generate(), host_maddrs=listen, transport=wire.transport(f"10.0.0.{number}"))
        with trio.CancelScope() as scope:
            async with host, RPC(host) as rpc, DHTNode(rpc) as node:
                host.set_peer_resolver(node.find_peer)
                if nodes:
                    await node.bootstrap(nodes[0].protocol.network.visible_maddrs)
                nodes.append(node)
                scopes.append(scope)
                task_status.started()
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for number in range(3):
            await nursery.start(run, number)
        network, dead = nodes[2].protocol.network, nodes[1].protocol.network.peer_id
        await network.open_stream(dead, "DHTProtocol.rpc_ping")
        scopes[1].cancel()
        await trio.sleep(1)
        assert not network.connections(dead)
        began = trio.current_time()
        with pytest.raises(DialError, match="refused"):
            await network.open_stream(dead, "DHTProtocol.rpc_ping")
        assert trio.current_time() - began < 1
        nursery.cancel_scope.cancel()
