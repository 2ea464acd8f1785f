"""Replicas: a server that begins with what another has learned."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import torch

from hivemind_p2p import DHT, Server
from hivemind_p2p.errors import ExpertNotFound, MessageTooLarge, Overloaded
from hivemind_p2p.kademlia import ValueWithExpiration
from hivemind_p2p.runtime import ExpertState, Runtime
from hivemind_p2p.server import replication
from hivemind_p2p.server.replication import METHOD, StateService, fetch_state, take_over
from hivemind_p2p.sync import portal
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.wire import runtime_pb2
from tests.runtime.modules import ffn_backend, same, weights_of
from tests.server.calls import Caller

X = torch.ones(2, 8)


def test_a_new_replica_begins_with_what_the_living_ones_have_learned(tmp_path):
    options = {"expert_uids": ["ffn.0", "ffn.1"], "hidden_dim": 8, "start": True, "replicate": True}
    options["host_maddrs"] = ["/ip4/127.0.0.1/tcp/0"]
    with DHT(start=True, host_maddrs=options["host_maddrs"]) as dht:
        options["initial_peers"] = dht.get_visible_maddrs()

        def learn(server, uid):
            portal().call(Caller(dht.node.rpc, server.dht.peer_id).unary, "backward", uid, X, torch.randn(2, 8))

        with Server.create(update_period=0.1, expiration=60, **options) as first:
            learn(first, "ffn.0")
            first_peer = first.dht.peer_id.base58
            while dht.get("ffn.0@replicas", latest=True).value[first_peer].value != {"updates": 1}:
                learn(first, "ffn.1")
            with Server.create(checkpoint_dir=tmp_path, **options) as second:
                for server in (first, second):
                    learn(server, "ffn.0")  # both go on
                assert second.experts["ffn.0"].update_count == 2
                assert second.experts["ffn.1"].update_count >= 1
                moments = [
                    server.experts["ffn.0"].optimizer.state_dict()["state"][0]["step"].item()
                    for server in (first, second)
                ]
                assert moments == [2, 2], "the optimizer's memory came too"
            assert dht.get("ffn.0", latest=True).value == first_peer, "who stops leaves the other one"
        with Server.create(checkpoint_dir=tmp_path, **options) as third:
            assert third.experts["ffn.0"].update_count == 2


@asynccontextmanager
async def serving(pair, experts):
    caller, callee = pair
    async with Runtime(experts):
        service = StateService(experts)
        service.register(callee)
        yield caller, callee.network.peer_id
        service.unregister(callee)


def learned(name="ffn.0"):
    expert = ffn_backend(name)
    expert.backward(X, torch.randn(2, 8))
    return expert


async def test_a_state_is_bounded_and_must_be_of_that_expert(pair, monkeypatch):
    expert = learned()
    async with serving(pair, {"ffn.0": expert}) as (rpc, peer_id):
        monkeypatch.setattr(replication, "_PART", 100)
        state = await fetch_state(rpc, peer_id, "ffn.0", max_bytes=10_000)
        again = ffn_backend()
        state.restore(again)
        assert same(again.module.parameters(), expert.module.parameters())
        with pytest.raises(MessageTooLarge, match="more than 1000 bytes"):
            await fetch_state(rpc, peer_id, "ffn.0", max_bytes=1000)
        with pytest.raises(ExpertNotFound):
            await fetch_state(rpc, peer_id, "ffn.1", max_bytes=10_000)
        monkeypatch.setattr(replication, "_AT_ONCE", 0)
        with pytest.raises(Overloaded):
            await fetch_state(rpc, peer_id, "ffn.0", max_bytes=10_000)


def node_of(rpc, listed):
    """A node in whose DHT these replicas are listed."""

    async def get_many(keys, sufficient_expiration_time):
        return dict.fromkeys(keys, listed)

    return SimpleNamespace(rpc=rpc, peer_id=rpc.network.peer_id, dht=SimpleNamespace(get_many=get_many))


def replicas(**updates):
    entries = {peer: ValueWithExpiration({"updates": count}, 1e10) for peer, count in updates.items()}
    return ValueWithExpiration(entries, 1e10)


async def test_only_who_has_learned_more_is_taken_over(pair, caplog):
    expert = learned()
    async with serving(pair, {"ffn.0": expert}) as (rpc, peer_id):
        ours = learned()
        ours.backward(X, X)
        before = weights_of(ours.module)
        await take_over(node_of(rpc, replicas(**{peer_id.base58: 1})), {"ffn.0": ours})
        assert same(ours.module.parameters(), before)
        await take_over(node_of(rpc, replicas(**{peer_id.base58: 3})), {"ffn.0": ours})
        assert same(ours.module.parameters(), before), "it says more than it has learned"
        assert f"{peer_id}: it declares 3 updates, and its state has 1" in caplog.text
        for _ in range(2):
            expert.backward(X, X)
        await take_over(node_of(rpc, replicas(**{peer_id.base58: 3})), {"ffn.0": ours})
        assert same(ours.module.parameters(), expert.module.parameters())


async def test_replicas_that_cannot_be_had_are_passed_over(pair, caplog):
    expert, ours = learned(), ffn_backend()
    async with serving(pair, {"ffn.0": expert}) as (rpc, peer_id):
        gone = Identity.generate().peer_id.base58
        listed = replicas(**{gone: 9, rpc.network.peer_id.base58: 8, peer_id.base58: 1, "nonsense": 7})
        listed.value["text"] = ValueWithExpiration("text", 1e10)
        listed.value[5] = ValueWithExpiration({"updates": "many"}, 1e10)
        await take_over(node_of(rpc, listed), {"ffn.0": ours})
    assert f"the state of expert ffn.0 cannot be had from {gone}" in caplog.text
    assert same(ours.module.parameters(), expert.module.parameters())
    for nothing in (None, ValueWithExpiration("text", 1e10), ValueWithExpiration({gone: 1, "x": (1, 2)}, 1e10)):
        await take_over(node_of(rpc, nothing), {"ffn.0": ours})


@pytest.mark.parametrize("kind", ["garbage", "nothing", "another shape", "damaged"])
async def test_whatever_a_peer_sends_leaves_the_expert_as_it_was(pair, kind, caplog):
    caller, callee = pair
    good = ExpertState.of(learned()).to_bytes("ffn.0")
    wide = ffn_backend("ffn.0")
    wide.module[3] = torch.nn.LayerNorm((1, 8))
    data = {
        "garbage": b"\xff" * 1000,
        "nothing": b"",
        "another shape": ExpertState.of(wide).to_bytes("ffn.0"),
        "damaged": good[:-4] + b"\0\0\0\0",
    }[kind]

    async def answer(requests, context):
        yield runtime_pb2.ExpertInfo(serialized_info=data)

    callee.register_stream(METHOD, runtime_pb2.ExpertUID, answer)
    ours = learned()
    before = ExpertState.of(ours)
    await take_over(node_of(caller, replicas(**{callee.network.peer_id.base58: 5})), {"ffn.0": ours})
    after = ExpertState.of(ours)
    assert after.tree == before.tree
    assert same(after.tensors.values(), before.tensors.values())
    assert "the state of expert ffn.0 cannot be had" in caplog.text
