"""Every message of the DHT, damaged in every way: answered, refused or ignored, and the node lives on as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable

import pytest
from google.protobuf.message import DecodeError, Message

from hivemind_p2p.dht import DHTNode
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.dht.protocol import FIND, PING, STORE
from hivemind_p2p.errors import HivemindError
from hivemind_p2p.kademlia import SHA1
from hivemind_p2p.rpc import RPC
from hivemind_p2p.wire import dht_pb2, msgpack
from tests.dht.swarm import Swarm, address, now

KEY = SHA1.to_bytes(key_id("key"))
ODD_BYTES = [b"", b"\x00", b"\xc1", bytes(19), bytes(20), b"\xff" * 20, bytes(21), b"\xc7\x02\x50\x90\xc0", bytes(5000)]
ODD_NUMBERS = [0, 1, -1, 2**31 - 1, 1e308, -1e308, float("inf"), float("-inf"), float("nan")]


def valid_messages() -> list[tuple[str, Message, type[Message]]]:
    info = dht_pb2.NodeInfo(node_id=SHA1.to_bytes(7), maddrs=[b"\x04\x0a\x00\x00\x01\x06\x00\x01"])
    store = dht_pb2.StoreRequest(
        keys=[KEY] * 2, subkeys=[b"\xc0", b"\xa1a"], values=[msgpack.dumps(1), msgpack.dumps("x")], peer=info,
        expiration_time=[now() + 60] * 2, in_cache=[False, True],
    )  # fmt: skip
    return [
        (PING, dht_pb2.PingRequest(peer=info), dht_pb2.PingResponse),
        (STORE, store, dht_pb2.StoreResponse),
        (FIND, dht_pb2.FindRequest(keys=[KEY, SHA1.to_bytes(5)], peer=info), dht_pb2.FindResponse),
    ]


def damage_fields(message: Message, chance: random.Random) -> None:
    """Put something odd into one field, at any depth."""
    field = chance.choice(message.DESCRIPTOR.fields)
    if field.message_type is not None:
        inner = getattr(message, field.name)
        damage_fields(inner.add() if field.is_repeated else inner, chance)
        return
    odd = ODD_BYTES if field.type == field.TYPE_BYTES else ODD_NUMBERS
    if field.type == field.TYPE_STRING:
        odd = ["", "\x00", "x" * 5000]
    value = chance.choice(odd)
    if field.cpp_type not in (field.CPPTYPE_DOUBLE, field.CPPTYPE_STRING):
        value = 1
    if field.is_repeated:
        values = getattr(message, field.name)
        values[:] = chance.choice([[value], [*values, value], [value] * 2, list(values)[:-1]])
    else:
        setattr(message, field.name, value)


def damage_bytes(message: Message, chance: random.Random) -> Message | None:
    """What a receiver makes of a message with some bytes changed, cut or doubled; None if nothing."""
    raw = bytearray(message.SerializeToString())
    for _ in range(chance.randint(1, 4)):
        position = chance.randrange(len(raw) + 1)
        match chance.randrange(3):
            case 0:
                raw[position : position + 1] = [chance.randrange(256)]
            case 1:
                del raw[position : position + chance.randint(1, 8)]
            case 2:
                raw[position:position] = raw[position : position + 8]
    try:
        return type(message).FromString(bytes(raw))
    except DecodeError:
        return None


async def as_it_was(node: DHTNode) -> None:
    assert (await node.get("precious", latest=True)).value == "kept"
    table = node.protocol.table
    for bucket in table.buckets:
        assert all(bucket.lower <= node_id < bucket.upper for node_id in bucket.contacts)
    for _, item in node.protocol.storage.items(now()):
        assert now() < item.expiration_time <= now() + node.settings.max_lifetime
        assert isinstance(item.value, bytes) or len(item.value) > 0


async def ask(rpc: RPC, node: DHTNode, method: str, request: Message, kind: type[Message]) -> None:
    """A refusal is as good as an answer; anything but an error of ours fails the test."""
    with contextlib.suppress(HivemindError):
        await rpc.call(node.protocol.own.peer, method, request, kind, timeout=5)


@pytest.mark.parametrize("seed", range(4))
async def test_damaged_requests(autojump_clock, swarm: Swarm, seed: int, caplog):
    chance = random.Random(seed)
    nodes = await swarm.grow(3)
    assert await nodes[1].store("precious", "kept", now() + 10_000)
    rpc = await swarm.rpc()
    await rpc.network.connect(address(nodes[0]))
    for _ in range(80):
        for method, message, kind in valid_messages():
            damage_fields(message, chance)
            await ask(rpc, nodes[0], method, message, kind)
        for method, message, kind in valid_messages():
            damaged = damage_bytes(message, chance)
            if damaged is not None:
                await ask(rpc, nodes[0], method, damaged, kind)
    await as_it_was(nodes[0])
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("seed", range(4))
async def test_damaged_answers(autojump_clock, swarm: Swarm, seed: int, caplog):
    """One neighbour answers with damage, always; the others are heard all the same."""
    chance = random.Random(seed)
    nodes = await swarm.grow(4)
    assert await nodes[1].store("precious", "kept", now() + 10_000)
    protocol = nodes[3].protocol
    for method, kind, serve in (
        (PING, dht_pb2.PingRequest, protocol._serve_ping),
        (FIND, dht_pb2.FindRequest, protocol._serve_find),
        (STORE, dht_pb2.StoreRequest, protocol._serve_store),
    ):

        async def damaged(request: Message, context, serve=serve) -> Message:
            answer = serve(request, context)
            response = await answer if isinstance(answer, Awaitable) else answer
            damage_fields(response, chance)
            return damage_bytes(response, chance) or response

        protocol.rpc.unregister(method)
        protocol.rpc.register(method, kind, damaged)
    for number in range(40):
        assert await nodes[0].store(f"key {number}", number, now() + 600)
        found = await nodes[2].get(f"key {number}", latest=True)
        # Without signatures nobody can tell a changed value from a true one; but there is one, and no garbage.
        assert found is not None
        await nodes[0].find_nearest_nodes([key_id(number)])
    for node in nodes[:3]:
        await as_it_was(node)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
