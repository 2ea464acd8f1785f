"""What peers send that they should not, and what must fit into messages."""

from __future__ import annotations

import math

import pytest

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import DHTNode, messages
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.dht.protocol import FIND, PING, STORE
from hivemind_p2p.errors import RemoteError
from hivemind_p2p.kademlia import SHA1
from hivemind_p2p.rpc import RPC
from hivemind_p2p.wire import dht_pb2, msgpack
from tests.dht.swarm import Swarm, address, now

KEY = SHA1.to_bytes(key_id("key"))
NODE_ID = SHA1.to_bytes(12345)


async def stranger(swarm: Swarm, node: DHTNode) -> RPC:
    """A peer that is no node, connected to ``node``."""
    rpc = await swarm.rpc()
    await rpc.network.connect(address(node))
    return rpc


def store_request(*records: tuple[bytes, bytes, float], **fields) -> dht_pb2.StoreRequest:
    """A request to store ``(tag, value, expiration)`` under KEY."""
    return dht_pb2.StoreRequest(
        keys=[KEY] * len(records),
        subkeys=[tag for tag, _, _ in records],
        values=[value for _, value, _ in records],
        expiration_time=[time for _, _, time in records],
        in_cache=[False] * len(records),
        **fields,
    )


async def test_every_record_of_a_store_is_judged_on_its_own(autojump_clock, swarm: Swarm):
    node = await swarm.node(DHTSettings(max_record_bytes=1000, max_key_bytes=50))
    rpc = await stranger(swarm, node)
    soon = now() + 60
    records = [
        (b"\xc0", b"\x01", now() - 1),
        (b"\xc0", b"\x01", math.nan),
        (b"\xc0", bytes(1001), soon),
        (b"\x91\x01", b"\x01", soon),  # a list is no subkey
        (b"\xc1", b"\x01", soon),  # no msgpack
        (b"\xd9\x40" + b"a" * 64, b"\x01", soon),  # too long
        (b"", b"\x01", soon),  # no dictionary
        (b"", b"", soon),
        (b"\xa1a", b"\x02", soon),
    ]
    response = await rpc.call(node.protocol.own.peer, STORE, store_request(*records), dht_pb2.StoreResponse, timeout=3)
    assert list(response.store_ok) == [False] * 8 + [True]
    assert (await node.get("key")).value == {"a": (2, soon)}


@pytest.mark.parametrize(
    ("method", "request_message", "response_type", "complaint"),
    [
        (STORE, dht_pb2.StoreRequest(keys=[KEY, KEY], values=[b""]), dht_pb2.StoreResponse, "per key"),
        (STORE, dht_pb2.StoreRequest(peer=dht_pb2.NodeInfo(node_id=b"x")), dht_pb2.StoreResponse, "20 bytes"),
        (FIND, dht_pb2.FindRequest(keys=[b"short"]), dht_pb2.FindResponse, "20 bytes"),
        (FIND, dht_pb2.FindRequest(keys=[KEY] * 2000), dht_pb2.FindResponse, "limit of 1024"),
        (FIND, dht_pb2.FindRequest(peer=dht_pb2.NodeInfo(node_id=b"x")), dht_pb2.FindResponse, "20 bytes"),
        (PING, dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(node_id=b"x" * 21)), dht_pb2.PingResponse, "20 bytes"),
    ],
)
async def test_garbage_is_refused_with_a_reason(
    autojump_clock, swarm: Swarm, method, request_message, response_type, complaint
):
    node = await swarm.node()
    rpc = await stranger(swarm, node)
    with pytest.raises(RemoteError, match=complaint):
        await rpc.call(node.protocol.own.peer, method, request_message, response_type, timeout=3)
    assert await node.store("key", 1, now() + 60)
    assert len(node.protocol.table) == 0


async def test_of_too_many_records_the_last_are_refused(autojump_clock, swarm: Swarm):
    node = await swarm.node(DHTSettings(max_keys_per_message=3))
    rpc = await stranger(swarm, node)
    records = [(msgpack.dumps(n), b"\x01", now() + 60) for n in range(5)]
    response = await rpc.call(node.protocol.own.peer, STORE, store_request(*records), dht_pb2.StoreResponse, timeout=3)
    assert list(response.store_ok) == [True] * 3 + [False] * 2


async def test_a_full_node_refuses_more(autojump_clock, swarm: Swarm):
    node = await swarm.node(DHTSettings(max_stored_records=2, cache_on_store=False))
    stored = await node.store_many(["a", "b", "c"], [1, 2, 3], now() + 60)
    assert list(stored.values()) == [True, True, False]


async def test_ping(autojump_clock, swarm: Swarm):
    node = await swarm.node()
    rpc = await stranger(swarm, node)
    info = dht_pb2.NodeInfo(node_id=NODE_ID)

    async def ping(**fields) -> dht_pb2.PingResponse:
        request = dht_pb2.PingRequest(**fields)
        return await rpc.call(node.protocol.own.peer, PING, request, dht_pb2.PingResponse, timeout=3)

    response = await ping()
    assert response.peer.node_id == SHA1.to_bytes(node.node_id)
    assert response.dht_time == pytest.approx(now(), abs=1)
    assert not response.available
    assert len(node.protocol.table) == 0  # who gives no id is a client
    response = await ping(peer=info, validate=True)
    assert not response.available  # it serves nothing: nobody can ping it
    assert len(node.protocol.table) == 0
    answers = [NODE_ID, bytes(20)]

    async def serve_ping(request: dht_pb2.PingRequest, context) -> dht_pb2.PingResponse:
        return dht_pb2.PingResponse(peer=dht_pb2.NodeInfo(node_id=answers[0]))

    rpc.register(PING, dht_pb2.PingRequest, serve_ping)
    assert (await ping(peer=info, validate=True)).available
    assert 12345 in node.protocol.table
    answers.reverse()
    assert not (await ping(peer=info, validate=True)).available  # it is not whom it says it is


async def test_answers_that_lie_do_not_keep_anyone_from_the_truth(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(10)
    await nodes[0].store("key", "true", now() + 60)
    lies = [
        dht_pb2.FindResponse(),
        dht_pb2.FindResponse(results=[dht_pb2.FindResult()] * 3, peer=dht_pb2.NodeInfo(node_id=NODE_ID)),
        dht_pb2.FindResponse(
            results=[
                dht_pb2.FindResult(
                    type=dht_pb2.FOUND_REGULAR,
                    value=b"\xc1 no msgpack",
                    expiration_time=now() + 1,
                    nearest_node_ids=[SHA1.to_bytes(n) for n in range(5000)],
                    nearest_peer_ids=[b"\x00\x02" + n.to_bytes(2, "big") for n in range(5000)],
                )
            ],
            peer=dht_pb2.NodeInfo(node_id=KEY),
        ),
    ]
    for lie in lies:
        rpc = await stranger(swarm, nodes[1])

        async def serve_find(
            request: dht_pb2.FindRequest, context, lie: dht_pb2.FindResponse = lie
        ) -> dht_pb2.FindResponse:
            return lie

        rpc.register(FIND, dht_pb2.FindRequest, serve_find)
        request = dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(node_id=KEY))  # as near to the key as can be
        await rpc.call(nodes[1].protocol.own.peer, PING, request, dht_pb2.PingResponse, timeout=3)
        assert (await nodes[1].get("key", latest=True)).value == "true"
        nodes[1].protocol.table.remove(key_id("key"))
        nodes[1].protocol.cache.discard(key_id("key"))


async def test_many_large_values_travel_in_several_messages(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(3, DHTSettings(cache_nearest=0, cache_locally=False, cache_on_store=False))
    values = {f"key {n}": bytes([n]) * 900_000 for n in range(9)}
    stored = await nodes[0].store_many(list(values), list(values.values()), now() + 60, exclude_self=True)
    assert all(stored.values())
    reader = DHTSettings(cache_locally=False)
    client = await swarm.node(reader, client_mode=True)
    swarm.count()
    found = await client.get_many(list(values), float("inf"))
    assert {key: item.value for key, item in found.items()} == values
    sizes = [len(request.keys) for method, _, request in swarm.calls if method == "find"]
    assert len(sizes) > 3  # what an answer left out was asked for again


async def test_a_dictionary_from_hivemind_is_stored_whole(autojump_clock, swarm: Swarm):
    node = await swarm.node()
    rpc = await stranger(swarm, node)
    dictionary = node.protocol.storage.new_dictionary()
    for n in range(3):
        dictionary.store(msgpack.dumps(n), msgpack.dumps(n), now() + 60 + n, now=now())
    record = (b"", messages.pack_dictionary(dictionary, now()), now() + 62)
    response = await rpc.call(node.protocol.own.peer, STORE, store_request(record), dht_pb2.StoreResponse, timeout=3)
    assert list(response.store_ok) == [True]
    found = (await node.get("key")).value
    assert {subkey: value for subkey, (value, _) in found.items()} == {0: 0, 1: 1, 2: 2}
