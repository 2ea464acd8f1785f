"""Peers of hivemind and of ours that know only one of the other kind find each other through it.

hivemind's DHT names peers without addresses; its daemon, and we, ask ``/ipfs/kad/1.0.0`` where they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from hivemind_p2p import Node
from hivemind_p2p.dht import get_dht_time
from hivemind_p2p.dht.peer_routing import PROTOCOL
from tests.interop.conftest import HivemindPeer
from tests.interop.test_dht import LOOPBACK, hivemind_in


@asynccontextmanager
async def strangers(hivemind: HivemindPeer, hivemind_too: HivemindPeer) -> AsyncIterator[Node]:
    """Two peers of hivemind that know nobody but the node of ours that this gives."""
    async with (
        Node(host_maddrs=LOOPBACK) as node,
        hivemind_in(hivemind, node),
        hivemind_in(hivemind_too, node),
    ):
        yield node


async def test_two_peers_of_hivemind_find_each_other_through_us(hivemind: HivemindPeer, hivemind_too: HivemindPeer):
    async with strangers(hivemind, hivemind_too):
        # The replicas: each of the three peers holds it, so each was reached.
        assert await hivemind.do("store", key="from afar", value="found", seconds=60)
        assert await hivemind_too.do("get", key="from afar") == "found"
        assert await hivemind_too.do("call", peer_id=hivemind.peer_id.base58, method="rpc_square", number=7) == 49
        assert await hivemind.do("contacts") == 2
        assert await hivemind_too.do("contacts") == 2


async def test_a_node_of_ours_reaches_a_peer_that_only_hivemind_knows(
    hivemind: HivemindPeer, hivemind_too: HivemindPeer
):
    async with hivemind_in(hivemind):
        await hivemind_too.do("connect", maddr=str(hivemind.maddr))
        await hivemind_too.do("join", initial_peers=[str(hivemind.maddr)])
        try:
            async with Node([str(hivemind.maddr)], host_maddrs=LOOPBACK) as node:
                # Joining looked around: hivemind named the other one, and its daemon told where it is.
                assert node.dht.protocol.table.id_of(hivemind_too.peer_id) is not None
                assert node.connections(hivemind_too.peer_id)
            async with Node(client_mode=True) as lonely:
                await lonely.connect(hivemind.maddr)
                lonely.dht.protocol.peer_routing.alive(hivemind.peer_id)
                found = await lonely.dht.find_peer(hivemind_too.peer_id)
                assert str(hivemind_too.maddr).rpartition("/p2p/")[0] in map(str, found)
                async with await lonely.open_stream(hivemind_too.peer_id, PROTOCOL):
                    assert lonely.connections(hivemind_too.peer_id)
        finally:
            await hivemind_too.do("leave")


async def test_ours_store_what_hivemind_s_strangers_find(hivemind: HivemindPeer, hivemind_too: HivemindPeer):
    async with (
        strangers(hivemind, hivemind_too) as first,
        Node([str(first.visible_maddrs[0])], host_maddrs=LOOPBACK) as second,
    ):
        assert await second.dht.store("ours", 5, get_dht_time() + 60)
        with trio.fail_after(30):
            assert await hivemind.do("get", key="ours") == 5
            assert await hivemind_too.do("get", key="ours") == 5
        assert {peer.peer for peer in second.dht.protocol.table} == {
            first.peer_id, hivemind.peer_id, hivemind_too.peer_id
        }  # fmt: skip
