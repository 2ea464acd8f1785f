"""What the DHT says about experts, over nodes in memory: the search on it, what is remembered, what is garbage."""

from __future__ import annotations

import pytest
import torch

from hivemind_p2p.client.beam_search import BeamSearch, ExpertInfo
from hivemind_p2p.client.lookup import Listings, find_experts, listing_from
from hivemind_p2p.kademlia import ValueWithExpiration
from hivemind_p2p.wire.expert_uid import FLAT_EXPERT, grid_entries
from tests.dht.swarm import Swarm, now


async def declare(node, *uids: str, seconds: float = 60, root: bool = True) -> None:
    """As a server does; without ``root``, as hivemind's."""
    peer = node.protocol.own.peer.base58
    records = {(uid, None): peer for uid in uids}
    for uid in uids:
        places = [place for place in grid_entries(uid) if root or place[0].count(".") > 1]
        records |= dict.fromkeys(places, (uid, peer))
    keys, subkeys = zip(*records, strict=True)
    assert all((await node.store_many(keys, list(records.values()), now() + seconds, subkeys)).values())


def listings(**options) -> Listings:
    return Listings(now, **{"found_for": 10, "absent_for": 10} | options)


async def search(node, scores, k, known: Listings, prefix: str = "ffn.") -> tuple[list[list[str]], int]:
    """The uids that each sample chose, and how many prefixes were looked up."""
    beam, looked_up = BeamSearch(prefix, scores, k), 0
    while wanted := beam.wanted():
        found, missing = known.recall(wanted)
        looked_up += len(missing)
        beam.feed(found | (await known.fetch(node, missing) if missing else {}))
    choice = beam.result()
    return [[choice.experts[at].uid for at in row if at >= 0] for row in choice.index.tolist()], looked_up


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("sizes", [(6,), (4, 4), (3, 3, 3)])
async def test_the_best_living_experts_are_found(autojump_clock, swarm: Swarm, root: bool, sizes) -> None:
    nodes = await swarm.grow(12)
    places = torch.cartesian_prod(*(torch.arange(length) for length in sizes)).view(-1, len(sizes)).tolist()
    uids = [".".join(("ffn", *map(str, place))) for place in places]
    for number, uid in enumerate(uids):
        await declare(nodes[number % 6], uid, root=root)
    scores = [torch.randn(5, length) for length in sizes]
    known = listings()
    chosen, looked_up = await search(nodes[-1], scores, 3, known)
    for sample, row in enumerate(chosen):
        score = {uid: sum(axis[sample, at].item() for axis, at in zip(scores, place, strict=True))
                 for uid, place in zip(uids, places, strict=True)}  # fmt: skip
        assert row == sorted(score, key=lambda uid: -score[uid])[:3]
    assert looked_up
    assert await search(nodes[-1], scores, 3, known) == (chosen, 0)


async def test_what_was_found_is_believed_for_a_while_and_no_longer_than_it_lasts(autojump_clock, swarm: Swarm) -> None:
    nodes = await swarm.grow(4)
    scores = [torch.zeros(1, 3), torch.zeros(1, 3)]
    await declare(nodes[0], "ffn.1.2", seconds=15)
    known = listings()
    assert (await search(nodes[1], scores, 1, known))[0] == [["ffn.1.2"]]
    autojump_clock.jump(9)
    assert await search(nodes[1], scores, 1, known) == ([["ffn.1.2"]], 0)
    autojump_clock.jump(7)
    assert (await search(nodes[1], scores, 1, known))[0] == [[]]
    await declare(nodes[0], "ffn.1.1")
    assert await search(nodes[1], scores, 1, known) == ([[]], 0)
    autojump_clock.jump(11)
    assert (await search(nodes[1], scores, 1, known))[0] == [["ffn.1.1"]]


async def test_a_listing_is_not_believed_for_longer_than_its_first_entry_lasts(autojump_clock, swarm: Swarm) -> None:
    nodes = await swarm.grow(4)
    await declare(nodes[0], "ffn.1.2", seconds=5)
    await declare(nodes[0], "ffn.1.1", seconds=60)
    known = listings()
    assert set((await known.fetch(nodes[1], ["ffn.1."]))["ffn.1."]) == {1, 2}
    autojump_clock.jump(5.1)
    assert known.recall(["ffn.1."]) == ({}, ["ffn.1."])
    assert set((await known.fetch(nodes[1], ["ffn.1."]))["ffn.1."]) == {1}


async def test_a_clock_that_is_put_back_does_not_make_a_listing_last(autojump_clock, swarm: Swarm) -> None:
    [node] = await swarm.grow(1)
    put_back = 0.0
    known = Listings(lambda: now() - put_back, found_for=10, absent_for=5)
    await declare(node, "ffn.1.2")
    await known.fetch(node, ["ffn.1.", "ffn.2."])
    assert known.recall(["ffn.1.", "ffn.2."])[1] == []
    put_back = 3600
    assert known.recall(["ffn.1.", "ffn.2."])[1] == ["ffn.1.", "ffn.2."]


async def test_without_negative_caching_an_expert_is_seen_at_once(autojump_clock, swarm: Swarm) -> None:
    nodes = await swarm.grow(4)
    known = listings(absent_for=0)
    assert await search(nodes[1], [torch.zeros(1, 2)], 1, known) == ([[]], 3)
    await declare(nodes[0], "ffn.1")
    assert (await search(nodes[1], [torch.zeros(1, 2)], 1, known))[0] == [["ffn.1"]]


async def test_a_doubted_listing_is_asked_for_past_our_own_node_s_memory(autojump_clock, swarm: Swarm) -> None:
    nodes = await swarm.grow(4)
    known = listings()
    await declare(nodes[0], "ffn.1.2", seconds=30)
    await known.fetch(nodes[1], ["ffn.1."])
    await declare(nodes[2], "ffn.1.2", seconds=60)
    found, missing = known.recall(["ffn.1."])
    assert (found["ffn.1."][2].peer_id, missing) == (nodes[0].protocol.own.peer, [])
    known.doubt("ffn.1.")
    assert known.recall(["ffn.1."]) == ({}, ["ffn.1."])
    assert (await known.fetch(nodes[1], ["ffn.1."]))["ffn.1."][2].peer_id == nodes[2].protocol.own.peer


async def test_experts_are_found_with_the_expiration_that_was_asked_for(autojump_clock, swarm: Swarm) -> None:
    nodes = await swarm.grow(4)
    await declare(nodes[0], "ffn.0", "ffn.1", seconds=30)
    peer = nodes[0].protocol.own.peer
    assert await find_experts(nodes[1], ["ffn.0", "ffn.9", "ffn.0"]) == [
        ExpertInfo("ffn.0", peer), None, ExpertInfo("ffn.0", peer),
    ]  # fmt: skip
    assert await find_experts(nodes[1], ["ffn.1"], now() + 20) == [ExpertInfo("ffn.1", peer)]
    assert await find_experts(nodes[1], ["ffn.1"], now() + 40) == [None]
    assert await find_experts(nodes[1], ["ffn.1"], latest=True) == [ExpertInfo("ffn.1", peer)]


PEER = "12D3KooWGjMCwoZHnTYrrPCVyKkmAgEWhvLYzYaUeNwyJTDJbBeG"


@pytest.mark.parametrize(
    "garbage",
    [
        "text",
        {0: "no entry"},
        {"0": ("ffn.0", PEER)},
        {True: ("ffn.0", PEER)},
        {0: ("ffn.0", "no peer id")},
        {0: ("ffn.0", b"bytes")},
        {0: ("ffn", PEER)},
        {0: (3, PEER)},
        {0: ("ffn.0", PEER, 1)},
        {0: None},
    ],
)
def test_listings_of_garbage_are_empty(garbage) -> None:
    if isinstance(garbage, dict) and garbage != {0: "no entry"}:
        garbage = {at: ValueWithExpiration(value, 1e10) for at, value in garbage.items()}
    assert listing_from(garbage) == {}


def test_a_listing_keeps_what_is_none_of_that() -> None:
    entries = {3: ("ffn.3.1", PEER), FLAT_EXPERT: ["ffn.3", PEER], 4: "garbage"}
    found = listing_from({at: ValueWithExpiration(value, 1e10) for at, value in entries.items()})
    assert {at: info.uid for at, info in found.items()} == {3: "ffn.3.1", FLAT_EXPERT: "ffn.3"}
