"""How experts stay declared: minutes of a swarm in memory under a virtual clock, for which every test must ask."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import trio

from hivemind_p2p.server.hosting import _keep_declared, declare
from tests.dht.swarm import Swarm, now


def node_of(dht_node):
    return SimpleNamespace(dht=dht_node, peer_id=dht_node.protocol.network.peer_id)


@pytest.fixture
async def server(swarm: Swarm):
    await swarm.grow(6)
    async with trio.open_nursery() as nursery:
        node = node_of(swarm.nodes[2])
        experts = {"ffn.0": SimpleNamespace(update_count=3)}
        await declare(node, experts, 60)
        nursery.start_soon(_keep_declared, node, experts, 30, 60)
        yield node
        nursery.cancel_scope.cancel()


async def test_an_expert_stays_declared(autojump_clock, server, swarm):
    for _ in range(10):
        found = await swarm.nodes[5].get("ffn.0", latest=True)
        assert found.value == server.peer_id.base58
        assert now() < found.expiration_time <= now() + 60
        replicas = await swarm.nodes[5].get("ffn.0@replicas", latest=True)
        assert {peer: entry.value for peer, entry in replicas.value.items()} == {found.value: {"updates": 3}}
        await trio.sleep(47)


async def test_a_failure_is_logged_and_the_next_time_goes_better(autojump_clock, server, swarm, caplog, monkeypatch):
    async def fail(*arguments):
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as broken:
        broken.setattr(type(server.dht), "store_many", fail)
        await trio.sleep(100)
    assert await swarm.nodes[5].get("ffn.0", latest=True) is None
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert "experts could not be declared" in caplog.text
    assert "a bug" in caplog.text
    await trio.sleep(30)
    assert (await swarm.nodes[5].get("ffn.0", latest=True)).value == server.peer_id.base58


async def test_a_refused_declaration_is_told(autojump_clock, server, swarm, caplog):
    await swarm.nodes[4].store("ffn.0", "somebody for longer", now() + 1000)
    await trio.sleep(31)
    assert "another server has declared ffn.0 for longer" in caplog.text


async def test_a_declaration_that_nobody_takes_is_told(autojump_clock, server, swarm, caplog):
    for key, subkey in (("ffn.0", None), ("ffn.0@replicas", server.peer_id.base58)):
        await swarm.nodes[4].store(key, "something else for longer", now() + 1000, subkey)
    await trio.sleep(31)
    assert "the swarm did not take the declaration of ffn.0" in caplog.text
