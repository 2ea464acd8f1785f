"""What the DHT tests share: swarms of nodes in memory, with real calls between them, which are counted."""

from __future__ import annotations

import random
from collections import Counter

import trio
from google.protobuf.message import Message
from multiaddr import Multiaddr

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import DHTNode
from hivemind_p2p.rpc import RPC
from hivemind_p2p.rpc.trace import CallEnded, CallStarted
from hivemind_p2p.testing import World
from hivemind_p2p.wire.peer_id import PeerID

EPOCH = 1_800_000_000.0


def now() -> float:
    """Unix time as the nodes of a swarm see it."""
    return EPOCH + trio.current_time()


class Swarm:
    """Nodes that live as long as the test."""

    def __init__(self, nursery: trio.Nursery, world: World | None = None) -> None:
        self.nursery = nursery
        self.world = world if world is not None else World()
        self.calls: list[tuple[str, PeerID, Message]] = []
        """Calls that were made: the method without ``rpc_``, who was asked, and what."""
        self.nodes: list[DHTNode] = []

    async def node(self, settings: DHTSettings | None = None, *, join: bool = True, **options) -> DHTNode:
        """One more node, which joins through the first unless told otherwise."""
        options = {"clock": now, "random": random.Random(len(self.nodes)), **options}
        node = DHTNode(await self.rpc(), settings, **options)
        await self.nursery.start(self._run, node)
        if join and self.nodes:
            await node.bootstrap([address(self.nodes[0])])
        self.nodes.append(node)
        return node

    async def rpc(self) -> RPC:
        """The calls of a peer that is no node yet."""
        return await self.nursery.start(self._run_rpc)

    async def _run_rpc(self, task_status: trio.TaskStatus[RPC]) -> None:
        async with self.world.network() as network, RPC(network, trace=self._note) as rpc:
            task_status.started(rpc)
            await trio.sleep_forever()

    async def _run(self, node: DHTNode, task_status: trio.TaskStatus[None]) -> None:
        async with node:
            task_status.started()
            await trio.sleep_forever()

    def _note(self, event: CallStarted | CallEnded) -> None:
        if isinstance(event, CallStarted) and event.request is not None:
            self.calls.append((event.method.rpartition("_")[2], event.peer_id, event.request))

    async def grow(self, count: int, settings: DHTSettings | None = None) -> list[DHTNode]:
        """``count`` more nodes, who have done with getting to know each other."""
        nodes = [await self.node(settings) for _ in range(count)]
        await trio.sleep(45)
        return nodes

    def kill(self, node: DHTNode) -> None:
        """From now on, what is sent to this node is never answered."""
        self.world.kill(node.protocol.network)

    def count(self) -> Counter[str]:
        """Calls by method since the last time this was asked."""
        counted = Counter(method for method, _, _ in self.calls)
        self.calls.clear()
        return counted


def address(node: DHTNode) -> Multiaddr:
    return node.protocol.network.visible_maddrs[0]


def holders(nodes: list[DHTNode], key_id: int, *, cache: bool = False) -> list[DHTNode]:
    """The nodes that store a key, or have it in their cache."""
    return [
        node
        for node in nodes
        if (node.protocol.cache if cache else node.protocol.storage).get(key_id, now()) is not None
    ]
