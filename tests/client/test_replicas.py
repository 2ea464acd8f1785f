"""Several servers of one expert: found in the DHT, asked in turn, beside each other, one instead of the other."""

from __future__ import annotations

import random

import pytest
import torch
import trio
from torch import nn

from hivemind_p2p import RemoteMixtureOfExperts, get_experts
from hivemind_p2p.client import attempts
from hivemind_p2p.client.attempts import _pause
from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.contacts import client_stats, contacts_of
from hivemind_p2p.client.latency import ENOUGH, HedgeBudget
from hivemind_p2p.client.replicas import BELIEVED_FOR, Balance, Replica, Replicas, replicas_from
from hivemind_p2p.errors import DeadlineExceeded, DialError, Overloaded, ProtocolViolation, RemoteError, StreamReset
from hivemind_p2p.kademlia import ValueWithExpiration
from hivemind_p2p.sync import portal
from hivemind_p2p.wire.peer_id import PeerID
from tests.client.peers import backend, hang
from tests.dht.swarm import Swarm, now

PEERS = [PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes([number]) * 32) for number in range(4)]


def test_what_a_record_lists() -> None:
    one, two, three, _ = (peer.base58 for peer in PEERS)
    entries = {
        one: ({"updates": 3}, 10),
        two: ({"updates": -1, "more": 1}, 30),
        three: (None, 20),
        "x": ({}, 1),
        5: ({}, 2),
    }
    record = {peer: ValueWithExpiration(*entry) for peer, entry in entries.items()} | {"garbage": 1}
    assert replicas_from("ffn.0", record) == (
        Replica(ExpertInfo("ffn.0", PEERS[1]), None),
        Replica(ExpertInfo("ffn.0", PEERS[0]), 3),
    )
    assert replicas_from("ffn.0", "garbage") == ()


async def test_they_are_remembered_for_a_while(autojump_clock, swarm: Swarm) -> None:
    nodes = await swarm.grow(4)
    known = Replicas(now)
    assert known.unknown(["ffn.0", "ffn.1"]) == ["ffn.0", "ffn.1"]
    await nodes[0].store("ffn.0@replicas", {"updates": 7}, now() + 600, PEERS[0].base58)
    await known.fetch(nodes[1], ["ffn.0", "ffn.1"])
    assert known.of("ffn.0") == (Replica(ExpertInfo("ffn.0", PEERS[0]), 7),)
    assert known.of("ffn.1") == known.of("ffn.2") == ()
    assert known.unknown(["ffn.0", "ffn.1"]) == []
    autojump_clock.jump(BELIEVED_FOR + 1)
    assert known.unknown(["ffn.0", "ffn.1"]) == ["ffn.0", "ffn.1"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(known.fetch, nodes[1], ["ffn.0"])
        await trio.testing.wait_all_tasks_blocked()
        assert known.unknown(["ffn.0"]) == [], "somebody asks already"
    assert repr(known) == "<Replicas of 2 experts>"


async def test_a_clock_that_is_put_back_does_not_make_them_last(autojump_clock, swarm: Swarm) -> None:
    [node] = await swarm.grow(1)
    put_back = 0.0
    known = Replicas(lambda: now() - put_back)
    await known.fetch(node, ["ffn.0"])
    assert known.unknown(["ffn.0"]) == []
    put_back = 3600
    assert known.unknown(["ffn.0"]) == ["ffn.0"]


def test_the_busier_of_two_is_not_chosen_and_the_slow_one_seldom() -> None:
    balance = Balance(random.Random(0))
    fast, slow = (ExpertInfo("ffn.0", peer) for peer in PEERS[:2])
    for info, seconds in ((fast, 1.0), (slow, 3.0)):
        balance.began(info.peer_id)
        balance.ended(info.peer_id, seconds)
    chosen = []
    for _ in range(100):
        info = balance.choose([fast, slow])
        chosen.append(info)
        balance.began(info.peer_id)
        balance.ended(info.peer_id, 1.0 if info == fast else 3.0)
    assert 5 < chosen.count(slow) < 20, "who was slow once is tried again"
    for _ in range(4):
        balance.began(fast.peer_id)
    assert balance.choose([fast, slow]) == slow
    assert balance.choose([fast]) == fast
    assert repr(balance) == "<Balance: 4 calls under way, 2 peers known>"


def two_replicas(serve, join, **options):
    """Two peers that serve one expert with the same weights, and that expert, whose client knows both."""
    torch.manual_seed(0)
    modules = [nn.Linear(4, 4) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    peers = [serve([backend("ffn.0", module, 4, **options)]) for module in modules]
    bootstrap = serve([])
    dht = join(bootstrap)
    [expert] = get_experts(dht, ["ffn.0"])
    assert {replica.info.peer_id for replica in expert.replicas} == {peer.dht.peer_id for peer in peers}
    return *peers, dht, expert


def test_calls_are_spread_and_a_backward_follows_its_forward(serve, join) -> None:
    one, two, dht, expert = two_replicas(serve, join, lr=0.1)
    contacts_of(dht).hedges = HedgeBudget(share=0, most=0)
    x = torch.randn(3, 4, requires_grad=True)
    made = fewest = 0
    while fewest < 3:  # one that a busy machine made slow once is tried again after some tens of calls
        assert made < 500
        expert(x).sum().backward()
        made += 1
        assert one.count("forward") == one.count("backward")
        fewest = min(peer.count("forward").get("ffn.0", 0) for peer in (one, two))
    assert client_stats(dht).calls == client_stats(dht).attempts == client_stats(dht).answered == 2 * made
    updates = [peer.backends["ffn.0"].update_count for peer in (one, two)]
    assert sum(updates) == made


def test_staleness_is_seen(serve, join) -> None:
    one, two, _, expert = two_replicas(serve, join, lr=0.1)
    assert [replica.updates for replica in expert.replicas] == [0, 0]
    for _ in range(3):
        one.backends["ffn.0"].backward(torch.ones(2, 4), torch.ones(2, 4))
    portal().call(_declare_again, one)
    assert {replica.info.peer_id: replica.updates for replica in expert.replicas} == {
        one.dht.peer_id: 3, two.dht.peer_id: 0,
    }  # fmt: skip


async def _declare_again(peer) -> None:
    from hivemind_p2p.server.hosting import declare

    await declare(peer.dht.node, peer.backends, 120)


def test_one_that_dies_is_replaced_by_the_other_within_the_call(serve, join) -> None:
    one, two, dht, expert = two_replicas(serve, join)
    x = torch.randn(3, 4, requires_grad=True)
    one.kill()
    for _ in range(10):
        torch.testing.assert_close(expert(x), two.backends["ffn.0"].module(x))
    stats = client_stats(dht)
    assert stats.failed == 0
    assert stats.failovers <= 1, "after its failure the dead one is left out"
    assert expert.peer_id == two.dht.peer_id


def test_one_that_refuses_is_replaced_in_the_backward_pass_too(serve, join) -> None:
    """And one that may have computed is not: nothing is learned twice."""
    one, two, dht, expert = two_replicas(serve, join, lr=0.1)

    def refuse(error):
        async def before(uid, direction):
            if direction == "backward":
                raise error

        return before

    for error, calls in ((Overloaded("full"), 2), (RemoteError("I may have computed it"), 1)):
        y = expert(torch.randn(3, 4, requires_grad=True))
        asked, other = (one, two) if one.count("forward") else (two, one)
        asked.before = refuse(error)
        if calls == 2:
            y.sum().backward()
        else:
            with pytest.raises(RemoteError, match="I may have computed it"):
                y.sum().backward()
        assert len(asked.calls) == 2
        assert other.count("backward") == ({"ffn.0": 1} if calls == 2 else {})
        asked.before = None
        for peer in (one, two):
            peer.calls.clear()
        contacts_of(dht).failures.__init__(contacts_of(dht).failures._clock)
    assert sum(peer.backends["ffn.0"].update_count for peer in (one, two)) == 1


def test_one_that_is_late_gets_company(serve, join) -> None:
    one, two, dht, expert = two_replicas(serve, join)
    x = torch.randn(3, 4)
    for _ in range(ENOUGH):
        contacts_of(dht).latencies.add("ffn.0", x.nbytes, 0.05)
    one.before = two.before = None
    cancelled = trio.Event()

    async def wait(uid, direction):
        first = not (one.count("forward") and two.count("forward"))
        if first:
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

    one.before = two.before = wait
    torch.testing.assert_close(expert(x), one.backends["ffn.0"].module(x))
    portal().call(cancelled.wait)
    stats = client_stats(dht)
    assert (stats.calls, stats.attempts, stats.hedges, stats.hedges_won) == (1, 2, 1, 1)


def test_a_mixture_does_not_lose_an_expert_of_which_one_replica_lives(serve, join) -> None:
    torch.manual_seed(0)
    modules = [nn.Linear(4, 4) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    one, two = (serve([backend("ffn.0", module, 4)]) for module in modules)
    dht = join(serve([]))
    moe = RemoteMixtureOfExperts(in_features=4, grid_size=(1,), dht=dht, uid_prefix="ffn.", k_best=1)
    portal().call(contacts_of(dht).replicas.fetch, dht.node.dht, ["ffn.0"])
    x = torch.randn(3, 4, requires_grad=True)
    assert torch.equal(moe(x), modules[0](x))
    one.kill()
    for _ in range(5):
        y = moe(x)
        y.sum().backward()
        assert torch.equal(y, modules[0](x))
        [call] = moe.last_report.forward.calls
        assert (call.outcome, call.peer_id) == ("answered", two.dht.peer_id)
        assert [attempt.outcome for attempt in call.attempts] in (["answered"], ["failed", "answered"])
        assert moe.last_report.backward.uids("answered") == ["ffn.0"]


async def _full(uid: str, direction: str) -> None:
    raise Overloaded("full")


def test_one_without_room_is_asked_again_after_a_pause(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4, lr=0.1)])
    dht = join(peer)
    [expert] = get_experts(dht, ["ffn.0"])
    refusals = iter([True, False, True, False])

    async def sometimes(uid, direction):
        if next(refusals):
            raise Overloaded("full")

    peer.before = sometimes
    expert(torch.randn(1, 4, requires_grad=True)).sum().backward()
    assert peer.count("forward") == peer.count("backward") == {"ffn.0": 2}
    assert peer.backends["ffn.0"].update_count == 1
    assert client_stats(dht).retries == 2
    assert _pause(Overloaded("full", retry_after=2.0), 1) >= 1.5, "as the server asks"
    peer.before = _full
    with pytest.raises(Overloaded):
        expert(torch.zeros(1, 4))
    assert peer.count("forward") == {"ffn.0": 6}, "not for ever"


def test_a_deadline_is_for_all_attempts_together(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    assert expert.info
    expert._timeouts["forward"] = 0.15
    peer.before = _full
    with pytest.raises((DeadlineExceeded, Overloaded)):
        expert(torch.zeros(1, 4))
    assert len(peer.calls) <= 3
    peer.before = hang
    with pytest.raises(DeadlineExceeded, match=r"ffn\.0 was not answered for within 0\.15 s"):
        expert(torch.zeros(1, 4))


def test_a_backward_that_failed_after_it_was_sent_is_not_sent_again(serve, join) -> None:
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4, lr=0.1)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    for error in (ProtocolViolation("no"), ZeroDivisionError(), DialError("its own trouble")):
        y = expert(torch.randn(1, 4, requires_grad=True))
        peer.calls.clear()

        async def fail(uid, direction, error=error):
            raise error

        peer.before = fail
        with pytest.raises(RemoteError):
            y.sum().backward()
        assert peer.count("backward") == {"ffn.0": 1}
        peer.before = None


def test_a_broken_stream_is_worth_another_forward_and_no_other_backward(serve, join, monkeypatch) -> None:
    """Who knows how far the peer came before it broke."""
    peer = serve([backend("ffn.0", nn.Linear(4, 4), 4, lr=0.1)])
    [expert] = get_experts(join(peer), ["ffn.0"])
    answer, asked = attempts.call_expert, list[str]()

    async def break_first(rpc, at, direction, *others):
        asked.append(direction)
        if asked.count(direction) == 1:
            raise StreamReset("broken")
        return await answer(rpc, at, direction, *others)

    monkeypatch.setattr(attempts, "call_expert", break_first)
    y = expert(torch.randn(1, 4, requires_grad=True))
    with pytest.raises(StreamReset):
        y.sum().backward()
    assert asked == ["forward", "forward", "backward"]
