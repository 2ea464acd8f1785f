"""How few peers are asked where everybody near a key is known, and that it is more where they do not agree."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import DHTNode, messages
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.dht.messages import StoreItem
from hivemind_p2p.dht.protocol import FIND, STORE
from hivemind_p2p.errors import NodeClosed
from hivemind_p2p.kademlia import SHA1
from hivemind_p2p.wire import dht_pb2, msgpack
from tests.dht.swarm import Swarm, address, holders, now

PLAIN = DHTSettings(cache_locally=False, cache_nearest=0, cache_on_store=False)
KEY = key_id("key")


def by_distance(nodes: list[DHTNode]) -> list[DHTNode]:
    return sorted(nodes, key=lambda node: node.node_id ^ KEY)


async def test_a_store_asks_its_replicas_and_nobody_else(autojump_clock, swarm: Swarm):
    nodes = by_distance(await swarm.grow(12, PLAIN))
    swarm.count()
    assert await nodes[-1].store("key", 1, now() + 100)
    assert swarm.count() == {"store": 5}
    assert by_distance(holders(nodes, KEY)) == nodes[:5]
    assert await nodes[2].store("key", 2, now() + 200)
    assert swarm.count() == {"store": 4}


async def test_a_store_finds_the_nearest_node_though_its_writer_did_not_know_it(autojump_clock, swarm: Swarm):
    nodes = by_distance(await swarm.grow(12, PLAIN))
    writer = nodes[-1]
    writer.protocol.table.remove(nodes[0].node_id)
    swarm.count()
    assert await writer.store("key", 1, now() + 100)
    calls = Counter((name, peer) for name, peer, _ in swarm.calls)
    assert by_distance(holders(nodes, KEY))[:5] == nodes[:5]
    assert calls["store", nodes[0].protocol.own.peer] == 1
    assert max(calls.values()) == 1
    assert nodes[0].node_id in writer.protocol.table


async def test_a_store_asks_around_if_nobody_tells_whom_he_knows(autojump_clock, swarm: Swarm):
    """As among peers of hivemind."""
    nodes = by_distance(await swarm.grow(12, PLAIN))
    for node in nodes[:-1]:
        serve = node.protocol._serve_store

        def tell_nothing(request, context, serve=serve) -> dht_pb2.StoreResponse:
            request.ClearField("tell_nearest")
            return serve(request, context)

        node.protocol.rpc.unregister(STORE)
        node.protocol.rpc.register(STORE, dht_pb2.StoreRequest, tell_nothing)
    writer = nodes[-1]
    writer.protocol.table.remove(nodes[0].node_id)
    swarm.count()
    assert await writer.store("key", 1, now() + 100)
    assert swarm.count()["find"] >= 10
    assert by_distance(holders(nodes, KEY))[:5] == nodes[:5]


@pytest.mark.parametrize("told", [[], [b"x" * 19], [b"x" * 20, b"x" * 20]], ids=["none", "no id", "too many"])
async def test_what_is_told_is_read_with_care(autojump_clock, swarm: Swarm, told: list[bytes]):
    nodes = by_distance(await swarm.grow(8, PLAIN))
    serve = nodes[0].protocol._serve_store

    def lie(request, context) -> dht_pb2.StoreResponse:
        response = serve(request, context)
        response.nearest_node_ids[:] = told
        return response

    nodes[0].protocol.rpc.unregister(STORE)
    nodes[0].protocol.rpc.register(STORE, dht_pb2.StoreRequest, lie)
    assert await nodes[-1].store("key", 1, now() + 100)
    assert len(holders(nodes, KEY)) >= 5


async def test_no_more_is_told_than_a_bucketful(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(10, DHTSettings(bucket_size=6))
    peer = nodes[0].protocol.own.peer
    request = messages.store_request(
        [StoreItem(KEY, b"\xc0", b"\x01", now() + 60)], dht_pb2.NodeInfo(), tell_nearest=2**32 - 1
    )
    rpc = nodes[1].protocol.rpc
    [told] = (await rpc.call(peer, STORE, request, dht_pb2.StoreResponse)).nearest_node_ids
    assert len(told) == 6 * 20
    find = dht_pb2.FindRequest(keys=[SHA1.to_bytes(KEY)], tell_nearest=2)
    [result] = (await rpc.call(peer, FIND, find, dht_pb2.FindResponse)).results
    assert len(result.nearest_node_ids) == len(result.nearest_peer_ids) == 2


async def test_latest_asks_the_replicas_if_they_agree(autojump_clock, swarm: Swarm):
    nodes = by_distance(await swarm.grow(15, PLAIN))
    await nodes[3].store("key", 1, now() + 100)
    swarm.count()
    assert (await nodes[-1].get("key", latest=True)).value == 1
    assert (await nodes[2].get("key", latest=True)).value == 1
    assert swarm.count() == {"find": 10}


async def test_latest_asks_on_if_the_replicas_do_not_agree(autojump_clock, swarm: Swarm):
    nodes = by_distance(await swarm.grow(15, PLAIN))
    await nodes[3].store("key", 1, now() + 100)
    newer = StoreItem(KEY, b"\xc0", msgpack.dumps(2), now() + 200)
    assert nodes[4].protocol.records.accept(newer, None)
    swarm.count()
    assert (await nodes[-1].get("key", latest=True)).value == 2
    assert swarm.count()["find"] >= 10
    for node in nodes[:5]:
        node.protocol.storage.discard(KEY)
    assert nodes[8].protocol.records.accept(newer, None)  # the nearest of those that have it: all others are new
    assert (await nodes[-1].get("key", latest=True)).value == 2


async def test_dictionaries_that_are_not_the_same_do_not_agree(autojump_clock, swarm: Swarm):
    nodes = by_distance(await swarm.grow(15, PLAIN))
    await nodes[3].store("key", 1, now() + 100, subkey="a")
    swarm.count()
    assert (await nodes[-1].get("key", latest=True)).value.keys() == {"a"}
    assert swarm.count() == {"find": 5}
    assert nodes[1].protocol.records.accept(StoreItem(KEY, b"\xa1b", b"\x02", now() + 100), None)
    assert nodes[7].protocol.records.accept(StoreItem(KEY, b"\xa1c", b"\x02", now() + 100), None)
    assert (await nodes[-1].get("key", latest=True)).value.keys() == {"a", "b", "c"}


async def test_a_get_asks_the_nearest_and_others_as_soon_as_that_is_late(autojump_clock, swarm: Swarm):
    nodes = by_distance(await swarm.grow(12, PLAIN))
    await nodes[3].store("key", 1, now() + 100)
    await nodes[-1].get("key", latest=True)  # from now on it knows how fast they are
    swarm.count()
    assert (await nodes[-1].get("key")).value == 1
    assert [peer for _, peer, _ in swarm.calls] == [nodes[0].protocol.own.peer]
    swarm.kill(nodes[0])
    began = trio.current_time()
    assert (await nodes[-1].get("key")).value == 1
    assert trio.current_time() - began < 0.2


async def test_a_store_that_is_cut_short_by_the_end_of_its_node_does_not_say_that_it_stored(
    autojump_clock, swarm: Swarm
):
    node = await swarm.node()

    async def write(other: DHTNode) -> None:
        with pytest.raises(NodeClosed, match="closed while it stored"):
            await other.store("key", 1, now() + 100)

    async with trio.open_nursery() as nursery, DHTNode(await swarm.rpc(), clock=now) as other:
        await other.bootstrap([address(node)])
        nursery.start_soon(write, other)
        await trio.testing.wait_all_tasks_blocked()
        other.protocol.network.forget()


async def test_who_asks_about_too_many_keys_is_told_of_none(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(10, DHTSettings(max_keys_per_message=3))
    items = [StoreItem(key_id(f"key {number}"), b"\xc0", b"\x01", now() + 60) for number in range(4)]
    for count, told in ((3, 3), (4, 0)):
        request = messages.store_request(items[:count], dht_pb2.NodeInfo(), tell_nearest=5)
        response = await nodes[1].protocol.rpc.call(nodes[0].protocol.own.peer, STORE, request, dht_pb2.StoreResponse)
        assert (len(response.nearest_node_ids), len(response.store_ok)) == (told, count)
