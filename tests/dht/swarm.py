"""What the DHT tests share: swarms of nodes in memory, whose calls are counted."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import DHTNode
from tests.dht.memory import MemoryRPC

EPOCH = 1_800_000_000.0


def now() -> float:
    """Unix time as the nodes of a swarm see it."""
    return EPOCH + trio.current_time()


class Swarm:
    """Nodes that live as long as the test."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.listening: dict[Multiaddr, MemoryRPC] = {}
        self.numbers = itertools.count(1)
        self.calls: list[tuple[str, Any, Any]] = []
        self.nodes: list[DHTNode] = []

    async def node(self, settings: DHTSettings | None = None, *, join: bool = True, **options) -> DHTNode:
        """One more node, which joins through the first unless told otherwise."""
        options = {"clock": now, "random": random.Random(len(self.nodes)), **options}
        node = DHTNode(self.rpc(), settings, **options)
        await self.nursery.start(self._run, node)
        if join and self.nodes:
            await node.bootstrap([address(self.nodes[0])])
        self.nodes.append(node)
        return node

    def rpc(self) -> MemoryRPC:
        """The calls of a peer that is not there yet."""
        return MemoryRPC(self.listening, self.calls, self.numbers)

    async def _run(self, node: DHTNode, task_status: trio.TaskStatus[None]) -> None:
        async with node:
            task_status.started()
            await trio.sleep_forever()

    async def grow(self, count: int, settings: DHTSettings | None = None) -> list[DHTNode]:
        """``count`` more nodes."""
        return [await self.node(settings) for _ in range(count)]

    def kill(self, node: DHTNode) -> None:
        """From now on, what is sent to this node is never answered."""
        node.protocol.network.dead = True

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
