"""One peer that does its worst: it cannot empty, fill or capture the tables and the stores of others."""

from __future__ import annotations

import random

import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import DHTNode
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.dht.messages import StoreItem, pack_dictionary, record_item, store_request
from hivemind_p2p.dht.protocol import FIND, PING, STORE
from hivemind_p2p.kademlia import SHA1, DictionaryValue, ValueWithExpiration
from hivemind_p2p.rpc import RPC
from hivemind_p2p.wire import dht_pb2, msgpack
from hivemind_p2p.wire.peer_id import PeerID
from tests.dht.swarm import Swarm, address, now

QUIET = DHTSettings(cache_locally=False, cache_on_store=False, cache_nearest=0)


async def attacker(swarm: Swarm, *victims: DHTNode) -> RPC:
    """A peer that is no node, connected to its victims."""
    rpc = await swarm.rpc()
    for victim in victims:
        await rpc.network.connect(address(victim))
    return rpc


async def claim(rpc: RPC, victim: DHTNode, node_id: int) -> None:
    """Say that we are the node of this id."""
    info = dht_pb2.NodeInfo(node_id=SHA1.to_bytes(node_id))
    await rpc.call(victim.protocol.own.peer, PING, dht_pb2.PingRequest(peer=info), dht_pb2.PingResponse, timeout=3)


async def ask_to_store(rpc: RPC, victim: DHTNode, *items: StoreItem) -> list[bool]:
    request = store_request(items, dht_pb2.NodeInfo())
    return list((await rpc.call(victim.protocol.own.peer, STORE, request, dht_pb2.StoreResponse, timeout=3)).store_ok)


def contacts(node: DHTNode) -> dict[int, PeerID]:
    return {contact.node_id: contact.peer for contact in node.protocol.table}


async def test_a_peer_with_a_thousand_names_has_one_place(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30)
    victim, before = nodes[7], contacts(nodes[7])
    rpc = await attacker(swarm, victim)
    for number in range(1000):
        await claim(rpc, victim, victim.node_id ^ (1 << number % 160) ^ number)
    await trio.sleep(60)
    after = contacts(victim)
    assert before.items() <= after.items()
    assert len(after) <= len(before) + 1


async def test_nobody_takes_the_place_of_a_node_that_lives(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(12)
    victim, before = nodes[0], contacts(nodes[0])
    rpc = await attacker(swarm, victim)
    for node_id in before:
        await claim(rpc, victim, node_id)
    await trio.sleep(60)
    assert contacts(victim) == before


async def test_a_flood_of_newcomers_pushes_out_no_node_that_lives(autojump_clock, swarm: Swarm):
    """They are all there and all near each other, as if rented for an hour; those who were there first stay."""
    settings = DHTSettings(bucket_size=5, num_replicas=3)
    nodes = await swarm.grow(30, settings)
    known = [contacts(node) for node in nodes]
    crowd = [await swarm.node(settings, join=False, node_id=key_id("key") ^ number) for number in range(60)]
    for newcomer in crowd:
        await newcomer.bootstrap([address(nodes[3])])
    await trio.sleep(120)
    for node, before in zip(nodes, known, strict=True):
        assert before.items() <= contacts(node).items()


async def test_a_liar_s_ghosts_enter_no_table_and_cost_little(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30, QUIET)
    rpc, chance, key = await attacker(swarm, *nodes), random.Random(1), key_id("key")
    near = key ^ 1  # nobody is nearer: the liar is asked in every lookup for the key
    named = []

    async def lie(request: dht_pb2.FindRequest, context) -> dht_pb2.FindResponse:
        response = dht_pb2.FindResponse(peer=dht_pb2.NodeInfo(node_id=SHA1.to_bytes(near)))
        for wanted in request.keys:
            ghosts = [int.from_bytes(wanted, "big") ^ chance.getrandbits(20) for _ in range(20)]
            peers = [b"\x00\x24\x08\x01\x12\x20" + chance.randbytes(32) for _ in ghosts]
            named.extend(ghosts)
            response.results.add(nearest_node_ids=map(SHA1.to_bytes, ghosts), nearest_peer_ids=peers)
            for peer in peers:
                nowhere = Multiaddr(f"/ip4/11.0.0.{chance.randrange(250)}/tcp/1").to_bytes()
                response.nearest_peer_addresses.add(peer_id=peer, maddrs=[nowhere])
        return response

    rpc.register(FIND, dht_pb2.FindRequest, lie)
    for node in nodes:
        await claim(rpc, node, near)
    assert await nodes[0].store("key", "true", now() + 600)
    swarm.count()
    for node in nodes[1:]:
        assert (await node.get("key", latest=True)).value == "true"
    calls = swarm.count()
    assert named
    assert calls["find"] <= 29 * 40
    for node in nodes:
        assert not contacts(node).keys() & set(named)


async def test_accomplices_do_not_capture_a_key(autojump_clock, swarm: Swarm):
    """One node is known to all. It names forty others, nearer to the key than anybody, who live and keep nothing."""
    nodes, key = await swarm.grow(30, QUIET), key_id("key")
    assert await nodes[0].store("key", "before", now() + 600)
    rpcs = [await swarm.rpc() for _ in range(41)]
    ids = [key ^ (1 << 100) ^ number for number in range(41)]
    named = [(SHA1.to_bytes(node_id), rpc.network.peer_id.to_bytes()) for node_id, rpc in zip(ids, rpcs, strict=True)]
    chance = random.Random(1)

    def plot(rpc: RPC, own: dht_pb2.NodeInfo) -> None:
        def name_accomplices(request: dht_pb2.FindRequest, context) -> dht_pb2.FindResponse:
            some = chance.sample(named, 20)
            result = dht_pb2.FindResult(
                nearest_node_ids=[node_id for node_id, _ in some], nearest_peer_ids=[peer for _, peer in some]
            )
            response = dht_pb2.FindResponse(peer=own, results=[result] * len(request.keys))
            for each in rpcs:
                maddrs = [maddr.to_bytes() for maddr in each.network.visible_maddrs]
                response.nearest_peer_addresses.add(peer_id=each.network.peer_id.to_bytes(), maddrs=maddrs)
            return response

        def keep_nothing(request: dht_pb2.StoreRequest, context) -> dht_pb2.StoreResponse:
            return dht_pb2.StoreResponse(peer=own, store_ok=[True] * len(request.keys))

        rpc.register(FIND, dht_pb2.FindRequest, name_accomplices)
        rpc.register(STORE, dht_pb2.StoreRequest, keep_nothing)

    for rpc, node_id in zip(rpcs, ids, strict=True):
        plot(rpc, dht_pb2.NodeInfo(node_id=SHA1.to_bytes(node_id)))
    for node in nodes:
        await rpcs[0].network.connect(address(node))
        await claim(rpcs[0], node, ids[0])
    readers = [await swarm.node(QUIET) for _ in range(6)]
    assert [(await reader.get("key")).value for reader in readers] == ["before"] * 6
    assert await readers[0].store("key", "after", now() + 900)
    assert [(await reader.get("key", latest=True)).value for reader in readers[1:]] == ["after"] * 5


async def test_a_peer_that_was_named_under_a_wrong_id_keeps_its_own(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(10, QUIET)
    rpc, key = await attacker(swarm, *nodes), key_id("key")
    innocent = max(nodes, key=lambda node: node.node_id ^ key).protocol.own

    async def lie(request: dht_pb2.FindRequest, context) -> dht_pb2.FindResponse:
        result = dht_pb2.FindResult(
            nearest_node_ids=[SHA1.to_bytes(key ^ 2)], nearest_peer_ids=[innocent.peer.to_bytes()]
        )
        own = dht_pb2.NodeInfo(node_id=SHA1.to_bytes(key ^ 1))
        return dht_pb2.FindResponse(peer=own, results=[result] * len(request.keys))

    rpc.register(FIND, dht_pb2.FindRequest, lie)
    for node in nodes:
        await claim(rpc, node, key ^ 1)
    for node in nodes:
        found = (await node.find_nearest_nodes([key], exclude_self=True))[key]
        assert key ^ 2 not in [contact.node_id for contact in found]
        if node.protocol.own != innocent:
            assert innocent in found
            assert contacts(node)[innocent.node_id] == innocent.peer


async def test_replays_change_nothing(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(6, QUIET)
    sent = []
    assert await nodes[0].store("key", "old", now() + 100)
    assert await nodes[0].store("parts", "old", now() + 100, subkey="a")
    sent += [(peer, request) for method, peer, request in swarm.calls if method == "store"]
    assert await nodes[0].store("key", "new", now() + 200)
    assert await nodes[0].store("parts", "new", now() + 200, subkey="a")
    rpc = await attacker(swarm, *nodes)

    async def replay() -> list[bool]:
        return [
            ok
            for peer, request in sent
            for ok in (await rpc.call(peer, STORE, request, dht_pb2.StoreResponse, timeout=3)).store_ok
        ]

    assert not any(await replay())
    for node in nodes:
        assert (await node.get("key", latest=True)).value == "new"
        assert (await node.get("parts", latest=True)).value["a"].value == "new"
    await trio.sleep(201)
    assert len(sent) >= 2
    assert not any(await replay())
    for node in nodes:
        assert await node.get("key", latest=True) is None
        assert len(node.protocol.storage) == 0 or await node.get("parts", latest=True) is None


async def test_nobody_can_make_records_of_others_end_sooner(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(6, QUIET)
    expires = now() + 1000
    assert await nodes[0].store("key", "kept", expires)
    assert await nodes[0].store("parts", "kept", expires, subkey="a")
    rpc = await attacker(swarm, *nodes)
    nothing = msgpack.dumps(None)
    part = key_id("parts")
    for node in nodes:
        for time in (0.0, -1.0, now() - 1, now() + 1e-3, expires - 1e-3, float("nan"), float("-inf")):
            items = [
                StoreItem(key, tag, nothing, time, in_cache)
                for key, tag in ((key_id("key"), msgpack.dumps(None)), (part, msgpack.dumps("a")))
                for in_cache in (False, True)
            ]
            await ask_to_store(rpc, node, *items)
    await trio.sleep(2)
    for node in nodes:
        assert await node.get("key", latest=True) == ("kept", expires)
        assert (await node.get("parts", latest=True)).value == {"a": ("kept", expires)}


async def test_an_answer_that_ends_soon_hides_no_other(autojump_clock, swarm: Swarm):
    """A liar near the key, asked by everybody, who has "newer" records that are about to end, or that have."""
    nodes = await swarm.grow(10, QUIET)
    rpc, key = await attacker(swarm, *nodes), key_id("key")
    assert await nodes[0].store("key", "kept", now() + 1000)
    info = dht_pb2.NodeInfo(node_id=SHA1.to_bytes(key ^ 1))

    async def lie(request: dht_pb2.FindRequest, context) -> dht_pb2.FindResponse:
        ended = dht_pb2.FindResult(
            type=dht_pb2.FOUND_REGULAR, value=msgpack.dumps("ended"), expiration_time=now() - 1000
        )
        return dht_pb2.FindResponse(peer=info, results=[ended] * len(request.keys))

    rpc.register(FIND, dht_pb2.FindRequest, lie)
    for node in nodes:
        await claim(rpc, node, key ^ 1)
        assert (await node.get("key")).value == "kept"
        assert (await node.get("key", latest=True)).value == "kept"


async def test_a_flood_of_cached_copies_pushes_out_cached_copies_alone(autojump_clock, swarm: Swarm):
    settings = DHTSettings(cache_size=50, max_stored_records=200, cache_on_store=False, num_replicas=1)
    node = await swarm.node(settings)
    assert await node.store("kept", 1, now() + 500)
    rpc = await attacker(swarm, node)
    for number in range(20):
        record = ValueWithExpiration(msgpack.dumps(number), now() + 5000)
        items = [record_item(number * 100 + each, record, now=now(), in_cache=True) for each in range(100)]
        await ask_to_store(rpc, node, *items)
    assert len(node.protocol.cache) == 50
    assert len(node.protocol.storage) == 1
    assert (await node.get("kept", latest=True)).value == 1


@pytest.mark.parametrize("count", [1, 40])
async def test_false_addresses_do_not_hide_a_peer(autojump_clock, swarm: Swarm, count: int):
    nodes = await swarm.grow(12)
    late = await swarm.node(join=False)
    late.protocol.network.set_peer_resolver(late.find_peer)
    innocent = nodes[5].protocol.own.peer
    nowhere = [Multiaddr(f"/ip4/10.9.0.{number}/tcp/1") for number in range(1, count + 1)]
    late.protocol.network.add_addresses(innocent, nowhere)
    await late.bootstrap([address(nodes[0])])
    await (await late.protocol.network.open_stream(innocent, PING)).aclose()
    assert late.protocol.network.connections(innocent)


@pytest.mark.parametrize("subkey", [None, "part"])
async def test_a_lie_without_an_end_is_not_kept(autojump_clock, swarm: Swarm, subkey: str | None):
    node = await swarm.node()
    liar = await attacker(swarm, node)
    item = StoreItem(key_id("key"), msgpack.dumps(subkey), msgpack.dumps("lie"), float("inf"))
    lie = {"type": dht_pb2.FOUND_REGULAR, "value": item.value}
    if subkey is not None:
        dictionary = DictionaryValue()
        dictionary.store(item.tag, item.value, item.expiration_time, now=now())
        lie = {"type": dht_pb2.FOUND_DICTIONARY, "value": pack_dictionary(dictionary, now())}
    result = dht_pb2.FindResult(expiration_time=float("inf"), **lie)
    answer = dht_pb2.FindResponse(results=[result], peer=dht_pb2.NodeInfo(node_id=bytes(20)))
    liar.register(FIND, dht_pb2.FindRequest, lambda request, context: answer)
    await claim(liar, node, 0)

    def seen(found: ValueWithExpiration | None) -> object:
        return found.value if subkey is None else found.value[subkey].value

    assert seen(await node.get("key", latest=True)) == "lie"
    answer.results[0].Clear()
    assert await node.store("key", "truth", now() + 60, subkey=subkey)
    assert seen(await node.get("key")) == seen(await node.get("key", latest=True)) == "truth"
