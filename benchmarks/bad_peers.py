"""Nodes that do harm, for simulations: they join like others, and then do not behave."""

from __future__ import annotations

import random
from typing import Any, Final

import trio

from hivemind_p2p.dht import DHTNode
from hivemind_p2p.dht.protocol import FIND, STORE
from hivemind_p2p.kademlia import SHA1
from hivemind_p2p.wire import dht_pb2

BEHAVIOURS: Final = ("silent", "slow", "lying")
LATE: Final = 2.0
_NAMED: Final = 20


def turn_bad(node: DHTNode, behaviour: str, chance: random.Random) -> None:
    """Replace how a node answers. All of them answer pings, and so stay in the tables of others.

    Args:
        behaviour: ``silent``: never answers; ``slow``: answers after ``LATE`` seconds; ``lying``: names twenty peers
            that do not exist, nearer to the key than anybody, has nothing, and says that it stores everything.
    """
    rpc, own = node.protocol.rpc, dht_pb2.NodeInfo(node_id=SHA1.to_bytes(node.node_id))

    async def be_silent(request: Any, context: Any) -> Any:
        await trio.sleep_forever()

    async def lie_about_nodes(request: dht_pb2.FindRequest, context: Any) -> dht_pb2.FindResponse:
        response = dht_pb2.FindResponse(peer=own)
        for key in request.keys:
            near = [int.from_bytes(key, "big") ^ chance.getrandbits(40) for _ in range(_NAMED)]
            result = response.results.add(nearest_node_ids=[SHA1.to_bytes(node_id) for node_id in near])
            for _ in near:
                peer = b"\x00\x24\x08\x01\x12\x20" + chance.randbytes(32)
                result.nearest_peer_ids.append(peer)
                nowhere = response.nearest_peer_addresses.add(peer_id=peer)
                nowhere.maddrs.append(b"\x04\x0b" + chance.randbytes(3) + b"\x06\x00\x01")  # /ip4/11.x.x.x/tcp/1
        return response

    async def lie_about_records(request: dht_pb2.StoreRequest, context: Any) -> dht_pb2.StoreResponse:
        return dht_pb2.StoreResponse(store_ok=[True] * len(request.keys), peer=own)

    def serve(method: str, kind: type[Any], handler: Any) -> None:
        rpc.unregister(method)
        rpc.register(method, kind, handler)

    if behaviour == "silent":
        serve(FIND, dht_pb2.FindRequest, be_silent)
        serve(STORE, dht_pb2.StoreRequest, be_silent)
    elif behaviour == "lying":
        serve(FIND, dht_pb2.FindRequest, lie_about_nodes)
        serve(STORE, dht_pb2.StoreRequest, lie_about_records)
    else:
        find, store = node.protocol._serve_find, node.protocol._serve_store

        async def find_late(request: dht_pb2.FindRequest, context: Any) -> dht_pb2.FindResponse:
            await trio.sleep(LATE)
            return find(request, context)

        async def store_late(request: dht_pb2.StoreRequest, context: Any) -> dht_pb2.StoreResponse:
            await trio.sleep(LATE)
            return store(request, context)

        serve(FIND, dht_pb2.FindRequest, find_late)
        serve(STORE, dht_pb2.StoreRequest, store_late)
