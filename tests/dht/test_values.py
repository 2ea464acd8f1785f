"""What users store and get, over whole swarms in memory under a virtual clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import DHTNode
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.errors import InvalidRecord, NodeClosed
from tests.dht.swarm import Swarm, address, holders, now

VALUES = ["text", 1.5, None, b"bytes", ("a", 1), {"nested": [1, ("t",), {}]}]


async def test_everyone_finds_what_one_stored(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30)
    expiration = now() + 100
    for value in VALUES:
        assert await nodes[7].store(("key", repr(value)), value, expiration)
    for node in nodes:
        for value in VALUES:
            assert await node.get(("key", repr(value))) == (value, expiration)
    assert await nodes[0].get("nobody stored this") is None


async def test_a_value_is_kept_by_the_nearest_nodes(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30)
    await nodes[3].store("key", 1, now() + 100)
    nearest = sorted(nodes, key=lambda node: node.node_id ^ key_id("key"))[:5]
    assert set(holders(nodes, key_id("key"))) == set(nearest)


async def test_a_lone_node_keeps_its_own(autojump_clock, swarm: Swarm):
    node = await swarm.node()
    assert await node.store("key", 1, now() + 100)
    assert await node.get("key", latest=True) == (1, now() + 100)
    assert not await node.store("other", 1, now() + 100, exclude_self=True)


async def test_the_later_expiration_wins(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(10)
    assert await nodes[0].store("key", "new", now() + 100)
    assert not await nodes[1].store("key", "old", now() + 50)
    assert not await nodes[1].store("key", "same age", (await nodes[0].get("key")).expiration_time)
    assert (await nodes[2].get("key", latest=True)).value == "new"
    assert await nodes[3].store("key", "newest", now() + 200)
    assert (await nodes[4].get("key", latest=True)).value == "newest"


async def test_latest_asks_on_where_get_takes_what_is_near(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(10, DHTSettings(cache_nearest=0))
    reader = max(nodes, key=lambda node: node.node_id ^ key_id("key"))
    reader.protocol.cache.store(key_id("key"), b"\x01", now() + 10, now=now())
    writer = min(nodes, key=lambda node: node.node_id ^ key_id("key"))
    await writer.store("key", 2, now() + 100)
    assert (await reader.get("key")).value == 1
    assert (await reader.get("key", sufficient_expiration_time=now() + 50)).value == 2
    reader.protocol.cache.discard(key_id("key"))
    assert (await reader.get("key", latest=True)).value == 2


async def test_everything_expires(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(10)
    await nodes[0].store("key", 1, now() + 30)
    await nodes[0].store("parts", 1, now() + 30, subkey="a")
    await nodes[1].store("parts", 2, now() + 60, subkey="b")
    assert set((await nodes[2].get("parts", latest=True)).value) == {"a", "b"}
    await trio.sleep(31)
    for node in nodes:
        assert await node.get("key") is None
        assert await node.get("key", latest=True) is None
        assert set((await node.get("parts", latest=True)).value) == {"b"}
    await trio.sleep(30)
    assert await nodes[3].get("parts", latest=True) is None


async def test_subkeys_of_many_peers_merge(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(20)
    expiration = now() + 100
    async with trio.open_nursery() as nursery:
        for number, node in enumerate(nodes):
            nursery.start_soon(node.store, "parts", f"value {number}", expiration + number, number)
    found = await nodes[11].get("parts", latest=True)
    assert found.value == {number: (f"value {number}", expiration + number) for number in range(20)}
    assert found.expiration_time == expiration + 19
    assert await nodes[3].store("parts", "renewed", expiration + 50, subkey=3)
    assert not await nodes[3].store("parts", "too old", expiration, subkey=4)
    found = await nodes[12].get("parts", latest=True)
    assert found.value[3] == ("renewed", expiration + 50)
    assert found.value[4] == ("value 4", expiration + 4)


async def test_where_a_value_meets_a_dictionary_the_later_wins(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(8)
    assert await nodes[0].store("key", "regular", now() + 50)
    assert not await nodes[1].store("key", "sooner", now() + 40, subkey="a")
    assert await nodes[1].store("key", "later", now() + 60, subkey="a")
    assert (await nodes[2].get("key", latest=True)).value["a"].value == "later"
    assert not await nodes[3].store("key", "regular", now() + 55)
    assert await nodes[3].store("key", "regular", now() + 70)
    assert (await nodes[4].get("key", latest=True)).value == "regular"


async def test_store_many_and_get_many(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(12)
    expirations = [now() + 50, now() + 60, now() + 70, now() + 70]
    stored = await nodes[0].store_many(["a", "b", "c", "c"], [1, 2, 3, 4], expirations, [None, None, "x", "y"])
    assert stored == {"a": True, "b": True, ("c", "x"): True, ("c", "y"): True}
    found = await nodes[5].get_many(["a", "b", "c", "d"])
    assert found["a"] == (1, expirations[0])
    assert found["c"].value == {"x": (3, expirations[2]), "y": (4, expirations[3])}
    assert found["d"] is None
    assert await nodes[5].get_many([]) == {}
    assert await nodes[5].store_many([], [], now() + 5) == {}


async def test_keys_that_are_equal_and_not_the_same(autojump_clock, swarm: Swarm):
    node = await swarm.node()
    assert await node.store_many([1, True], ["one", "yes"], now() + 50) == {1: True}
    assert (await node.get(1)).value == "one"
    assert (await node.get(True)).value == (await node.get_many([True, "true"]))[True].value == "yes"
    with pytest.raises(InvalidRecord, match="True equals another of these keys and is not the same"):
        await node.get_many([1, True])
    assert await node.store_many([1, True], ["newer", "older"], [now() + 60, now() + 40]) == {1: False}
    assert await node.store_many([1, True], ["older", "newer"], [now() + 50, now() + 60]) == {1: False}


async def test_what_expires_while_it_is_looked_for_is_not_found(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(3)
    assert await nodes[0].store("key", 1, now() + 0.5)
    swarm.kill(nodes[1])
    assert await nodes[0].get("key", latest=True) is None
    assert await nodes[0].store("key", 1, now() + 60)
    assert await nodes[0].get("key", latest=True) == (1, pytest.approx(now() + 60, abs=9))


async def test_replicas_survive_the_death_of_their_nodes(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(25)
    await nodes[0].store_many([f"key {n}" for n in range(10)], list(range(10)), now() + 1000)
    for node in nodes[1:13]:
        swarm.kill(node)
    found = await nodes[20].get_many([f"key {n}" for n in range(10)], float("inf"))
    replicas = {n: holders(nodes[:1] + nodes[13:], key_id(f"key {n}")) for n in range(10)}
    assert {n: item.value for n in range(10) if (item := found[f"key {n}"])} == {n: n for n in range(10) if replicas[n]}
    assert sum(bool(alive) for alive in replicas.values()) >= 8


async def test_dead_peers_do_not_hang_a_lookup(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(20)
    await nodes[0].store("key", 1, now() + 1000)
    for node in nodes[2:18]:
        swarm.kill(node)
    before = now()
    await nodes[1].get("missing")
    assert now() - before < 8
    before = now()
    await nodes[1].get("missing too")  # those that failed are passed over, or out of the table
    assert now() - before < 3


async def test_a_store_goes_to_those_who_live(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(20)
    for node in nodes[1:11]:
        swarm.kill(node)
    assert await nodes[0].store("key", 1, now() + 100)
    assert len(holders(nodes[:1] + nodes[11:], key_id("key"))) == 5
    assert (await nodes[15].get("key", latest=True)).value == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("key", 1, 0.0), "expired .* give a time in the future"),
        (("key", b"x" * 2**21, 1e12), "larger than the limit of 1048576 bytes"),
        ((["key"], 1, 1e12), "use a tuple"),
        (("key", object(), 1e12), "cannot be stored"),
        (("key", 1, 1e12, "s" * 5000), "the subkey of 5003 bytes"),
    ],
)
async def test_what_nobody_would_store_is_refused_at_once(autojump_clock, swarm: Swarm, arguments, message: str):
    nodes = await swarm.grow(2)
    swarm.count()
    with pytest.raises(InvalidRecord, match=message):
        await nodes[0].store(*arguments)
    assert not swarm.count()


async def test_lists_that_do_not_fit_together_are_refused(autojump_clock, swarm: Swarm):
    node = await swarm.node()
    with pytest.raises(InvalidRecord, match="2 keys, 1 values, 2 expiration times and 2 subkeys do not fit together"):
        await node.store_many(["a", "b"], [1], now() + 5)


async def test_a_closed_node_says_so(autojump_clock, swarm: Swarm):
    node = await swarm.node()
    async with DHTNode(await swarm.rpc(), clock=now) as other:
        await other.bootstrap([address(node)])
        assert repr(other).endswith("serving: 1 contacts, 0 records, 0 cached>")
    assert "closed" in repr(other)
    with pytest.raises(NodeClosed, match="not running"):
        await other.get("key")
    with pytest.raises(NodeClosed, match="started before"):
        await other.__aenter__()


async def test_a_get_ends_when_its_node_is_closed(autojump_clock, swarm: Swarm):
    node = await swarm.node()

    async def read(other: DHTNode) -> None:
        with pytest.raises(NodeClosed, match="closed while"):
            await other.get("missing")

    async with trio.open_nursery() as nursery, DHTNode(await swarm.rpc(), clock=now) as other:
        await other.bootstrap([address(node)])
        swarm.kill(node)
        nursery.start_soon(read, other)
        await trio.testing.wait_all_tasks_blocked()


async def test_what_a_caller_raises_comes_out_as_it_is(autojump_clock, swarm: Swarm):
    with pytest.raises(KeyError, match="mine"):
        async with DHTNode(await swarm.rpc(), clock=now):
            raise KeyError("mine")
