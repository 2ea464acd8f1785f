"""Joining, leaving, dying, clients, and how nodes keep knowing each other."""

from __future__ import annotations

import base58
import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.dht.protocol import PING
from hivemind_p2p.errors import BootstrapError
from tests.dht.swarm import Swarm, address, holders, now


async def test_joining_fills_the_tables_of_both_sides(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(20)
    for node in nodes:
        assert len(node.protocol.table) >= 15
    late = await swarm.node()
    assert sum(late.node_id in node.protocol.table for node in nodes) >= 15


async def test_join_through_one_live_peer_of_several_dead_ones(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(5)
    for node in nodes[:3]:
        swarm.kill(node)
    nobody = Multiaddr(str(address(nodes[0])).replace("10.0.", "10.9."))
    late = await swarm.node(join=False)
    before = now()
    await late.bootstrap([nobody, *(address(node) for node in nodes)])
    assert now() - before < 10  # nobody waits for the dead for long
    assert late.node_id in nodes[4].protocol.table
    await nodes[4].store("key", 1, now() + 100)
    assert (await late.get("key")).value == 1


async def test_bootstrap_with_nobody_alive_says_what_happened_at_each(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(2)
    swarm.kill(nodes[0])
    nobody = Multiaddr(str(address(nodes[1])).replace("10.0.", "10.9."))
    late = await swarm.node(join=False)
    with pytest.raises(BootstrapError) as caught:
        await late.bootstrap([address(nodes[0]), str(nobody)])
    text = str(caught.value)
    assert "none of the 2 initial peers" in text
    assert str(address(nodes[0])) in text
    assert str(nobody) in text


async def test_our_own_address_among_the_initial_peers_is_passed_over(autojump_clock, swarm: Swarm):
    node = await swarm.node()
    await node.bootstrap([address(node)])
    assert len(node.protocol.table) == 0


async def test_a_clock_that_is_wrong_cannot_join(autojump_clock, swarm: Swarm):
    await swarm.node()
    with pytest.raises(BootstrapError, match=r"its clock is (59\.9|60\.0) s behind ours.*set the clock"):
        await swarm.node(clock=lambda: now() + 60)
    await swarm.node(clock=lambda: now() - 2)  # what peers may differ by


async def test_one_address_that_is_none_keeps_nobody_from_joining(autojump_clock, swarm: Swarm):
    nobody = base58.b58encode(b"\x00\x46" + bytes(70)).decode()  # a key of 70 bytes
    odd = ["garbage", f"/ip4/10.0.0.9/tcp/1/p2p/{nobody}"]
    node, late = await swarm.node(), await swarm.node(join=False)
    with pytest.raises(BootstrapError, match="none of the 2 initial peers can be used") as failure:
        await late.bootstrap(odd)
    assert str(failure.value).count("not the address of a peer") == 2
    await late.bootstrap([*odd, address(node)])
    assert late.node_id in node.protocol.table


async def test_a_clock_that_is_set_back_does_not_lengthen_what_is_passed_over(autojump_clock, swarm: Swarm):
    ahead = 3 * 3600.0
    node, other = await swarm.node(), await swarm.node(clock=lambda: now() + ahead, join=False, client_mode=True)
    await other.protocol.ping(await other.protocol.network.connect(address(node)))
    swarm.world.partition([node.protocol.network])
    assert await other.protocol.find(node.protocol.own.peer, [5]) is None
    swarm.world.heal()
    ahead = 0.0
    await trio.sleep(6)  # blacklist_time, and a little
    assert await other.protocol.find(node.protocol.own.peer, [5]) is not None


async def test_clients_are_in_no_table_and_are_asked_nothing(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(8)
    client = await swarm.node(client_mode=True)
    assert await client.store("key", 1, now() + 100)
    for node in nodes:
        assert (await node.get("key", latest=True)).value == 1
        assert node.protocol.table.id_of(client.protocol.own.peer) is None
    assert (await client.get("key", latest=True)).value == 1
    assert client not in holders([*nodes, client], key_id("key"))
    assert len(client.protocol.table) == 8
    asked = [peer for _, peer, _ in swarm.calls]
    assert client.protocol.own.peer not in asked
    assert "client" in repr(client)
    late = await swarm.node(join=False)
    with pytest.raises(BootstrapError):
        await late.bootstrap([address(client)])


async def test_the_nearest_nodes_are_found(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(40)
    target = key_id("somewhere")
    truth = [node.protocol.own for node in sorted(nodes, key=lambda node: node.node_id ^ target)]
    for node in nodes[::9]:
        assert (await node.find_nearest_nodes([target], 10))[target] == truth[:10]
        others = [contact for contact in truth if contact != node.protocol.own]
        assert (await node.find_nearest_nodes([target], 10, exclude_self=True))[target] == others[:10]


async def test_find_peer_tells_addresses(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(40)
    sought = nodes[20]
    for node in nodes[::7]:
        known = node.protocol.network.addresses(sought.protocol.own.peer)
        node.protocol.network.forget(sought.protocol.own.peer)
        found = await node.find_peer(sought.protocol.own.peer)
        assert [str(maddr) for maddr in found] == [str(address(sought)).partition("/p2p/")[0]]
        assert set(known) <= set(found)
    assert await nodes[0].find_peer(nodes[0].protocol.own.peer) == []


async def test_a_third_node_reaches_a_peer_that_only_the_swarm_knows(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30)
    third, sought = await swarm.node(join=False), nodes[20].protocol.own.peer
    network = third.protocol.network
    network.set_peer_resolver(third.find_peer)
    # Not a bootstrap, which would look around: the third node knows nobody but the first.
    await third.protocol.ping(await network.connect(address(nodes[0])))
    assert network.addresses(sought) == []
    await (await network.open_stream(sought, PING)).aclose()
    [connection] = network.connections(sought)
    assert connection.outbound


async def test_looking_for_peers_does_not_lead_to_looking_for_more_peers(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(30)
    node = await swarm.node()
    node.protocol.network.set_peer_resolver(node.find_peer)
    for other in nodes[5:]:
        swarm.kill(other)
    node.protocol.network.forget()
    swarm.count()
    assert await node.get("missing") is None
    assert swarm.count()["find"] <= 31


async def test_find_peer_of_a_stranger_is_empty(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(5)
    stranger = await swarm.node(join=False)
    assert await nodes[0].find_peer(stranger.protocol.own.peer) == []


async def test_a_node_that_joins_is_given_what_it_should_hold(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(3)
    keys = [f"key {n}" for n in range(20)]
    await nodes[0].store_many(keys, keys, now() + 1000)
    await nodes[0].store("parts", 1, now() + 1000, subkey="a")
    late = await swarm.grow(2)
    await trio.sleep(1)
    for node in late:
        for key in [*keys, "parts"]:
            assert node in holders(late, key_id(key))
    for node in nodes:
        swarm.kill(node)
    assert (await late[0].get("key 7", latest=True)).value == "key 7"
    assert (await late[1].get("parts", latest=True)).value == {"a": (1, pytest.approx(now() + 1000, abs=100))}


async def test_a_dead_contact_makes_room_and_a_live_one_stays(autojump_clock, swarm: Swarm):
    settings = DHTSettings(bucket_size=2, num_replicas=1, depth_modulo=1)
    own = await swarm.node(settings, node_id=0)
    far = 1 << 159
    near = [await swarm.node(settings, node_id=n) for n in (1, 2)]
    old = [await swarm.node(settings, node_id=far + n) for n in (1, 2)]
    swarm.kill(old[0])
    table = own.protocol.table

    def known() -> set[int]:
        return {contact.node_id for contact in table} - {node.node_id for node in near}

    assert known() == {far + 1, far + 2}
    await swarm.node(settings, node_id=far + 3)
    await trio.sleep(5)
    assert known() == {far + 2, far + 3}
    await swarm.node(settings, node_id=far + 4)
    await trio.sleep(5)
    assert known() == {far + 2, far + 3}


async def test_stale_buckets_are_refreshed_in_the_background(autojump_clock, swarm: Swarm):
    await swarm.grow(5)
    node = await swarm.node(DHTSettings(refresh_timeout=60.0))
    await trio.sleep(50)
    swarm.count()
    await trio.sleep(120)
    assert swarm.count()["find"] > 0
    assert all(bucket.last_updated >= now() - 121 for bucket in node.protocol.table.buckets)


async def test_without_refresh_timeout_an_idle_swarm_is_silent(autojump_clock, swarm: Swarm):
    await swarm.grow(5)
    await trio.sleep(60)
    swarm.count()
    await trio.sleep(10_000)
    assert not swarm.count()
