"""Ten minutes of a swarm's life, in seconds: a hundred nodes, who come and go without saying goodbye, on a
network that is slow and loses things."""

from __future__ import annotations

import random

import trio

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import DHTNode
from hivemind_p2p.testing import World
from tests.dht.swarm import Swarm, address, now

NODES = 100
VALUES = 20


async def test_a_large_swarm_under_churn_keeps_its_values(autojump_clock):
    chance = random.Random(1)
    settings = DHTSettings(cache_locally=False, cache_on_store=False, cache_nearest=0)
    async with trio.open_nursery() as nursery:
        swarm = Swarm(nursery, World(latency=0.04, jitter=0.04, loss=0.01, retransmit_after=0.3, seed=1))
        alive: list[DHTNode] = []

        async def join() -> None:
            node = await swarm.node(settings, join=False)
            if alive:
                await node.bootstrap([address(peer) for peer in chance.sample(alive, min(3, len(alive)))])
            alive.append(node)

        for _ in range(NODES):
            await join()
        for number in range(VALUES):
            expires = now() + 10_000
            assert await chance.choice(alive).store(f"key {number}", number, expires)
            assert await chance.choice(alive).store("all of them", number, expires, subkey=number)

        for _ in range(5):  # every two minutes, five die and five come
            await trio.sleep(120)
            for node in chance.sample(alive, 5):
                alive.remove(node)
                swarm.kill(node)
            for _ in range(5):
                await join()

        found = await chance.choice(alive).get_many([f"key {number}" for number in range(VALUES)])
        lost = [key for key, item in found.items() if item is None]
        assert not lost
        parts = await chance.choice(alive).get("all of them", latest=True)
        assert parts is not None
        assert {subkey: item.value for subkey, item in parts.value.items()} == {n: n for n in range(VALUES)}

        before = now()
        reader = await swarm.node(settings, join=False, client_mode=True)
        await reader.bootstrap([address(alive[0])])
        assert (await reader.get("key 7")).value == 7
        assert now() - before < 15  # the dead cost time, but not much
        nursery.cancel_scope.cancel()
