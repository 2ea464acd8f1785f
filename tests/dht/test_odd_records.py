"""Records and answers that are within the letter of the wire and were made to hurt."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import messages
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.dht.messages import StoreItem
from hivemind_p2p.dht.protocol import FIND, PING, STORE
from hivemind_p2p.errors import InvalidRecord
from hivemind_p2p.kademlia import SHA1, Contact
from hivemind_p2p.rpc import CallContext
from hivemind_p2p.wire import dht_pb2, msgpack
from hivemind_p2p.wire.peer_id import PeerID
from tests.dht.swarm import Swarm, address, now
from tests.dht.test_poisoning import ask_to_store, attacker, claim


def tuples(depth: int) -> Any:
    """Tuples inside each other."""
    value: Any = 1
    for _ in range(depth):
        value = (value,)
    return value


async def test_the_deepest_subkey_that_is_stored_can_be_read(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(3)
    rpc = await attacker(swarm, *nodes)
    for depth in range(msgpack.MAX_DEPTH - 2, msgpack.MAX_DEPTH + 1):
        key = f"key {depth}"
        assert await nodes[0].store(key, "precious", now() + 600, subkey="kept")
        tag = msgpack.dumps(tuples(depth))
        for node in nodes:
            await ask_to_store(rpc, node, StoreItem(key_id(key), tag, msgpack.dumps("odd"), now() + 900))
        for node in [*nodes, await swarm.node()]:
            assert (await node.get(key, latest=True)).value["kept"].value == "precious"
    with pytest.raises(InvalidRecord, match="extension values are inside each other"):
        await nodes[0].store("key", "value", now() + 60, subkey=tuples(msgpack.MAX_DEPTH))
    assert await nodes[0].store("key", "value", now() + 60, subkey=tuples(msgpack.MAX_DEPTH - 1))


@pytest.mark.parametrize("field", ["size", "dtype"])
async def test_no_answer_is_too_deep_to_be_refused(autojump_clock, swarm: Swarm, field: str):
    """A list deeper than Python's stack, as a field of a tensor descriptor, as a subkey."""
    node, liar = await swarm.node(), await swarm.rpc()
    deep = b"\x91" * 1000 + b"\x90"
    fields = b"\x81\xa4size" + deep if field == "size" else b"\x82\xa4size\x90\xa5dtype" + deep
    descriptor = b"\xc8" + len(fields).to_bytes(2, "big") + b"\x51" + fields
    entry = b"\x93" + descriptor + b"\xc4\x01\x01" + msgpack.dumps(now() + 60)
    inner = b"\x93" + msgpack.dumps(1.0) + msgpack.dumps(now() + 60) + b"\x91" + entry
    dictionary = b"\xc8" + len(inner).to_bytes(2, "big") + b"\x50" + inner
    asked = []

    def answer(request: dht_pb2.FindRequest, context: CallContext) -> dht_pb2.FindResponse:
        asked.append(request)
        result = dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=dictionary, expiration_time=now() + 60)
        return dht_pb2.FindResponse(results=[result] * len(request.keys), peer=dht_pb2.NodeInfo(node_id=bytes(20)))

    liar.register(FIND, dht_pb2.FindRequest, answer)
    await liar.network.connect(address(node))
    await claim(liar, node, 0)
    assert await node.get("key", latest=True) is None
    assert asked


ODD_MADDRS = {
    "no peer id": b"\x04\x01\x02\x03\x04\x06\x00\x01\xa5\x03\x48\x00\x46" + bytes(70),  # /p2p with a key of 70 bytes
    "long": b"\x04\x01\x02\x03\x04" * 1000,
}


@pytest.mark.parametrize("maddr", ODD_MADDRS.values(), ids=ODD_MADDRS.keys())
async def test_an_odd_address_is_passed_over_wherever_it_stands(autojump_clock, swarm: Swarm, maddr: bytes):
    node, liar = await swarm.node(), await swarm.rpc()
    sender = dht_pb2.NodeInfo(node_id=bytes(20), maddrs=[maddr])
    asked = []

    def answer(request: dht_pb2.FindRequest, context: CallContext) -> dht_pb2.FindResponse:
        asked.append(request)
        named = dht_pb2.FindResult(nearest_node_ids=[b"\x01" * 20], nearest_peer_ids=[b"\x00\x01\x01"])
        told = dht_pb2.PeerAddresses(peer_id=b"\x00\x01\x01", maddrs=[maddr])
        return dht_pb2.FindResponse(results=[named] * len(request.keys), peer=sender, nearest_peer_addresses=[told])

    liar.register(FIND, dht_pb2.FindRequest, answer)
    await liar.network.connect(address(node))
    ping = dht_pb2.PingRequest(peer=sender)
    await liar.call(node.protocol.own.peer, PING, ping, dht_pb2.PingResponse, timeout=3)
    assert await node.get("key", latest=True) is None
    assert asked
    assert not node.protocol.network.addresses(PeerID(b"\x00\x01\x01"))


def test_what_is_kept_for_reuse_of_what_peers_send_is_small():
    tracemalloc.start()
    try:
        for number in range(100):
            odd = b"\x04" + number.to_bytes(4, "big") + bytes(2**18)
            assert messages.maddrs_in([odd], 6) == []
            result = dht_pb2.FindResult(nearest_node_ids=[bytes(20)], nearest_peer_ids=[odd])
            answer = dht_pb2.FindResponse(results=[result], peer=messages.node_info(1))
            assert not messages.find_answer(answer, [5], DHTSettings(), 0.0).found[5].nearest
        assert tracemalloc.get_traced_memory()[0] < 2**21
    finally:
        tracemalloc.stop()


async def test_an_answer_has_room_for_all_keys_that_may_be_asked_for(autojump_clock, swarm: Swarm):
    node, asker = await swarm.node(), await swarm.rpc()
    for number in range(100):
        peer = PeerID(b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big"))
        node.protocol.table.heard_from(Contact(SHA1.hash(bytes([number])), peer), now())
    large, small = node.settings.max_record_bytes, 2**12
    sizes = [large, large, large - 2 * small, *[small] * 4, *[0] * (node.settings.max_keys_per_message - 7)]
    for key, size in enumerate(sizes):
        assert not size or node.protocol.records.accept(StoreItem(key, b"\xc0", bytes(size), now() + 60), None)
    await asker.network.connect(address(node))
    request = dht_pb2.FindRequest(keys=[SHA1.to_bytes(key) for key in range(len(sizes))])
    response = await asker.call(node.protocol.own.peer, FIND, request, dht_pb2.FindResponse, timeout=3)
    found = [len(result.value) or "omitted" * result.value_omitted for result in response.results]
    assert found == [large, *["omitted"] * 2, *[small] * 4, *[""] * (len(sizes) - 7)]
    assert all(len(result.nearest_node_ids) == node.settings.bucket_size for result in response.results)


async def test_what_a_peer_took_before_it_failed_is_stored(autojump_clock, swarm: Swarm):
    node, peer = await swarm.node(), await swarm.rpc()
    taken: list[bytes] = []

    def take(request: dht_pb2.StoreRequest, context: CallContext) -> dht_pb2.StoreResponse:
        if taken:
            raise RuntimeError("the disk is full")
        taken.extend(request.keys)
        return dht_pb2.StoreResponse(store_ok=[True] * len(request.keys), peer=dht_pb2.NodeInfo(node_id=bytes(20)))

    peer.register(STORE, dht_pb2.StoreRequest, take)
    await peer.network.connect(address(node))
    await claim(peer, node, 0)
    count = node.settings.max_keys_per_message
    stored = await node.store_many(range(count + 9), [0] * (count + 9), now() + 60, exclude_self=True)
    assert len(taken) == count == sum(stored.values())
    assert all(stored[key] == (SHA1.to_bytes(key_id(key)) in taken) for key in range(count + 9))
