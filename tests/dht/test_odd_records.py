"""Records and answers that are within the letter of the wire and were made to hurt."""

from __future__ import annotations

from typing import Any

import pytest

from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.dht.messages import StoreItem
from hivemind_p2p.errors import InvalidRecord
from hivemind_p2p.wire import msgpack
from tests.dht.swarm import Swarm, now
from tests.dht.test_poisoning import ask_to_store, attacker


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
