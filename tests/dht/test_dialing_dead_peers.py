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


@pytest.mark.parametrize("dead", [[1], [1, 2, 3]])
async def test_dialling_dead_peers_does_not_wait_for_questions_to_dead_peers(autojump_clock, dead: list[int]) -> None:
    """Each dial asks the swarm where its peer is, and so the other dead peers, which are being dialled as well."""
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

    async def dial(number: int) -> None:
        with pytest.raises(DialError, match="refused"):
            await network.open_stream(nodes[number].protocol.own.peer, "DHTProtocol.rpc_ping")

    async with trio.open_nursery() as nursery:
        for number in range(5):
            await nursery.start(run, number)
        network = nodes[4].protocol.network
        for number in dead:
            await network.open_stream(nodes[number].protocol.own.peer, "DHTProtocol.rpc_ping")
            scopes[number].cancel()
        await trio.sleep(1)
        began = trio.current_time()
        async with trio.open_nursery() as dials:
            for number in dead:
                dials.start_soon(dial, number)
        assert trio.current_time() - began < 1
        nursery.cancel_scope.cancel()
