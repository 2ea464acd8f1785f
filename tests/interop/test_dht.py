"""One swarm of the real hivemind's DHT and ours, on loopback: joining, storing, finding, both ways.

Whoever is to find is a client, which stores nothing itself: what it finds came over the wire.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from multiaddr import Multiaddr

from hivemind_p2p import Node
from hivemind_p2p.dht import get_dht_time
from hivemind_p2p.wire.tensor_descriptor import TensorDescriptor
from tests.interop.conftest import HivemindPeer

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
VALUES = ["text", 7, -1.5, "", 2**60]


@asynccontextmanager
async def hivemind_in(hivemind: HivemindPeer, *nodes: Node, **options) -> AsyncIterator[None]:
    """hivemind's DHT, a member of the swarm of these nodes; of its own if there are none."""
    initial_peers = [str(node.visible_maddrs[0]) for node in nodes]
    for maddr in initial_peers:
        await hivemind.do("connect", maddr=maddr)
    await hivemind.do("join", initial_peers=initial_peers, **options)
    try:
        yield
    finally:
        await hivemind.do("leave")


async def test_hivemind_joins_us_and_finds_what_we_store(hivemind: HivemindPeer):
    async with Node(host_maddrs=LOOPBACK) as node, hivemind_in(hivemind, node, client_mode=True):
        soon = get_dht_time() + 60
        for number, value in enumerate(VALUES):
            assert await node.dht.store(f"ours {number}", value, soon)
            assert await hivemind.do("get", key=f"ours {number}") == value
        for subkey, value in [("a", 1), (2, "two")]:  # hivemind fails where a string and a number expire at one time
            assert await node.dht.store("our parts", value, soon + len(str(value)), subkey=subkey)
        assert await hivemind.do("get", key="our parts") == {"a": 1, "2": "two"}
        assert await hivemind.do("get", key="nobody's") is None
        assert not node.dht.protocol.table.nearest(node.dht.node_id, 1)  # a client is nobody to ask


async def test_hivemind_stores_with_us(hivemind: HivemindPeer):
    async with Node(host_maddrs=LOOPBACK) as node, hivemind_in(hivemind, node, client_mode=True):
        for number, value in enumerate(VALUES):
            assert await hivemind.do("store", key=f"theirs {number}", value=value, seconds=60)
            assert (await node.dht.get(f"theirs {number}", latest=True)).value == value
        assert await hivemind.do("store", key="theirs 0", value="later", seconds=90)
        assert not await hivemind.do("store", key="theirs 0", value="earlier", seconds=30)
        found = await node.dht.get("theirs 0", latest=True)
        assert found.value == "later"
        assert found.expiration_time == pytest.approx(get_dht_time() + 90, abs=10)


async def test_we_join_hivemind_and_find_what_it_stores(hivemind: HivemindPeer):
    async with hivemind_in(hivemind):
        for number, value in enumerate(VALUES):
            assert await hivemind.do("store", key=f"kept {number}", value=value, seconds=60)
        async with Node([str(hivemind.maddr)], client_mode=True) as node:
            for number, value in enumerate(VALUES):
                assert (await node.dht.get(f"kept {number}")).value == value
            assert await hivemind.do("store_special", key="special", seconds=60)
            assert (await node.dht.get("special")).value == [
                (1, b"two", None),
                TensorDescriptor((None, 2, 3), dtype="torch.float16", device_type=None, compression=2),
            ]
            assert await node.dht.get("nobody's") is None


async def test_we_store_with_hivemind(hivemind: HivemindPeer):
    async with hivemind_in(hivemind), Node([str(hivemind.maddr)], client_mode=True) as node:
        soon = get_dht_time() + 60
        for number, value in enumerate(VALUES):
            assert await node.dht.store(f"given {number}", value, soon)
            assert await hivemind.do("get", key=f"given {number}") == value
        assert await node.dht.store("tuple", (1, (b"x", None)), soon)
        assert await hivemind.do("get", key="tuple") == repr((1, (b"x", None)))
        assert not await node.dht.store("given 0", "earlier", soon - 30)


async def test_parts_of_one_key_come_from_both(hivemind: HivemindPeer):
    async with Node(host_maddrs=LOOPBACK) as node, hivemind_in(hivemind, node):
        assert await node.dht.store("parts", "ours", get_dht_time() + 60, subkey="us")
        assert await hivemind.do("store", key="parts", value="theirs", seconds=60, subkey="them")
        assert await hivemind.do("get", key="parts") == {"us": "ours", "them": "theirs"}
        found = await node.dht.get("parts", latest=True)
        assert {subkey: item.value for subkey, item in found.value.items()} == {"us": "ours", "them": "theirs"}


async def test_a_mixed_swarm_agrees(hivemind: HivemindPeer):
    """Three of ours and one of hivemind's, all members; each finds what each stores."""
    async with Node(host_maddrs=LOOPBACK) as first:
        initial_peers = [str(first.visible_maddrs[0])]
        async with (
            Node(initial_peers, host_maddrs=LOOPBACK) as second,
            Node(initial_peers, host_maddrs=LOOPBACK) as third,
            hivemind_in(hivemind, first, second, third),
        ):
            nodes = [first, second, third]
            assert await hivemind.do("contacts") == 3
            for number, node in enumerate(nodes):
                assert await node.dht.store(f"shared {number}", number, get_dht_time() + 60)
            assert await hivemind.do("store", key="shared 3", value=3, seconds=60)
            for number in range(4):
                for node in nodes:
                    assert (await node.dht.get(f"shared {number}", latest=True)).value == number
                assert await hivemind.do("get", key=f"shared {number}") == number
            for node in nodes:
                assert hivemind.peer_id in {
                    contact.peer for contact in node.dht.protocol.table.nearest(node.dht.node_id, 20)
                }
            assert Multiaddr(str(hivemind.maddr).rpartition("/p2p/")[0]) in third.network.addresses(hivemind.peer_id)
