"""Caching, refreshing, sharing: how many calls things cost."""

from __future__ import annotations

from collections import Counter

import trio

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.dht.protocol import FIND, PING
from hivemind_p2p.kademlia import SHA1
from hivemind_p2p.rpc import CallContext
from hivemind_p2p.wire import dht_pb2
from tests.dht.swarm import Swarm, address, holders, now

PLAIN = DHTSettings(cache_locally=False, cache_nearest=0, cache_on_store=False)


async def test_what_was_found_is_cached_here_and_nearby(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30)
    await nodes[0].store("key", 1, now() + 100)
    await trio.sleep(1)
    reader = next(node for node in nodes[1:] if node not in holders(nodes, key_id("key")))
    holders(nodes, key_id("key"))[0].protocol.storage.discard(key_id("key"))  # or all that are asked agree
    cached_before = holders(nodes, key_id("key"), cache=True)
    await reader.get("key", latest=True)
    await trio.sleep(1)
    cached = set(holders(nodes, key_id("key"), cache=True)) - set(cached_before)
    assert reader in cached
    [nearby] = cached - {reader}
    lacking = [node for node in nodes if node not in holders(nodes, key_id("key")) and node is not reader]
    assert nearby is min(lacking, key=lambda node: node.node_id ^ key_id("key"))
    swarm.count()
    await reader.get("key")
    assert not swarm.count()


async def test_what_was_stored_is_cached(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30)
    writer = max(nodes, key=lambda node: node.node_id ^ key_id("key"))
    await writer.store("key", 1, now() + 100)
    swarm.count()
    assert (await writer.get("key")).value == 1
    assert not swarm.count()


async def test_a_refused_store_refreshes_what_is_cached(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30, DHTSettings(cache_nearest=0))
    writer = max(nodes, key=lambda node: node.node_id ^ key_id("key"))
    await writer.store("key", "old", now() + 50)
    await nodes[1].store("key", "new", now() + 100)
    assert not await writer.store("key", "in between", now() + 60)
    await trio.sleep(1)
    swarm.count()
    assert (await writer.get("key")).value == "new"
    assert not swarm.count()


async def test_a_dictionary_in_the_cache_follows_our_stores_and_those_of_others(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30, DHTSettings(cache_nearest=0))
    writer = max(nodes, key=lambda node: node.node_id ^ key_id("parts"))
    await nodes[1].store("parts", 1, now() + 100, subkey="theirs")
    await writer.get("parts", latest=True)
    await nodes[1].store("parts", 2, now() + 110, subkey="theirs later")
    await writer.store("parts", 3, now() + 120, subkey="ours")
    assert set((await writer.get("parts")).value) == {"theirs", "ours"}
    await trio.sleep(1)
    assert set((await writer.get("parts")).value) == {"theirs", "theirs later", "ours"}


async def test_what_is_used_is_looked_up_again_before_it_expires(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30, DHTSettings(cache_nearest=0))
    reader = max(nodes, key=lambda node: node.node_id ^ key_id("key"))
    start = now()
    for key in ("key", "unused"):
        await nodes[1].store(key, 1, start + 30)
        await reader.get(key)
    await reader.get("key")  # from the cache
    await nodes[1].store("key", 2, start + 90)
    await trio.sleep(start + 24.5 - now())
    swarm.count()
    assert (await reader.get("key")).value == 1
    await trio.sleep(1)
    refreshed = {key for method, _, request in swarm.calls if method == "find" for key in request.keys}
    assert refreshed == {SHA1.to_bytes(key_id("key"))}  # the other one was never read from the cache
    swarm.count()
    assert (await reader.get("key")).value == 2
    assert not swarm.count()  # nobody waited for a peer


async def test_callers_who_want_the_same_share_one_lookup(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30, PLAIN)
    reader = max(nodes, key=lambda node: node.node_id ^ key_id("key"))
    await nodes[1].store("key", 1, now() + 100)
    swarm.count()
    await reader.get("key", latest=True)
    alone = swarm.count()["find"]
    found = []

    async def read() -> None:
        found.append(await reader.get("key", latest=True))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(read)
    assert [item.value for item in found] == [1] * 20
    assert 0 < swarm.count()["find"] <= alone


async def test_who_shares_a_lookup_sees_what_came_here_since_it_began(autojump_clock, swarm: Swarm):
    node, peer = await swarm.node(), await swarm.rpc()
    asked, found, go_on = [], {}, trio.Event()
    sender = dht_pb2.NodeInfo(node_id=bytes(20))

    async def answer(request: dht_pb2.FindRequest, context: CallContext) -> dht_pb2.FindResponse:
        asked.append(request)
        await go_on.wait()
        return dht_pb2.FindResponse(results=[dht_pb2.FindResult()], peer=sender)

    async def read(name: str) -> None:
        found[name] = (await node.get("key", latest=True)).value

    peer.register(FIND, dht_pb2.FindRequest, answer)
    await peer.network.connect(address(node))
    assert await node.store("key", "old", now() + 100)
    await peer.call(node.protocol.own.peer, PING, dht_pb2.PingRequest(peer=sender), dht_pb2.PingResponse, timeout=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, "before")
        await trio.sleep(0.1)
        assert await node.store("key", "new", now() + 200)
        nursery.start_soon(read, "after")
        await trio.sleep(0.1)
        assert not found
        go_on.set()
    assert found["after"] == "new"
    assert len(asked) == 1


async def test_those_who_wait_go_on_when_the_first_gives_up(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30, PLAIN)
    reader = max(nodes, key=lambda node: node.node_id ^ key_id("key"))
    await nodes[1].store("key", 1, now() + 100)
    found = []

    async def read(patience: float) -> None:
        with trio.move_on_after(patience):
            found.append(await reader.get("key", latest=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, 0.03)
        nursery.start_soon(read, 10)
    assert [item.value for item in found] == [1]


async def test_a_lookup_ends_when_nobody_wants_it_any_more(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30, PLAIN)
    swarm.count()
    with trio.move_on_after(0.01):
        await nodes[0].get("missing")
    begun = swarm.count()["find"]
    await trio.sleep(10)
    assert begun <= nodes[0].settings.alpha
    assert swarm.count()["find"] == 0


async def test_a_result_satisfies_those_who_want_less(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30, PLAIN)
    reader = max(nodes, key=lambda node: node.node_id ^ key_id("key"))
    await nodes[1].store("key", 1, now() + 100)
    swarm.count()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.get, "key", True)
        nursery.start_soon(reader.get, "key")
    assert swarm.count()["find"] <= 30


async def test_bulk_calls_ask_each_peer_once(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(18, PLAIN)  # everyone is near everything
    keys = [f"key {n}" for n in range(50)]
    swarm.count()
    assert all((await nodes[0].store_many(keys, keys, now() + 100)).values())
    assert set(Counter(peer for _, peer, _ in swarm.calls).values()) == {1}
    assert swarm.count() == {"store": 17}
    found = await nodes[1].get_many(keys, float("inf"))
    assert all(found[key].value == key for key in keys)
    assert set(Counter(peer for _, peer, _ in swarm.calls).values()) == {1}
    assert swarm.count() == {"find": 17}


async def test_bulk_calls_in_a_larger_swarm_cost_little_more_than_one(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(50)
    keys = [f"key {n}" for n in range(64)]
    swarm.count()
    await nodes[0].store_many(keys, keys, now() + 100)
    counted = swarm.count()
    assert counted["store"] <= 50
    assert counted["find"] <= 100
