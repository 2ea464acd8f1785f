"""Ten peers of hivemind and ten of ours in one swarm, on loopback. Latecomers know but one peer, of the other kind."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from hivemind_p2p import Node
from hivemind_p2p.dht import get_dht_time
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.wire.peer_id import PeerID
from tests.interop.foreign import ForeignProcess
from tests.interop.process import hivemind_process
from tests.interop.test_dht import LOOPBACK

EACH = 10
EVERYBODY = range(2 * EACH)
SOME = (1, 8, 11, 18)
"""Two of ours, two of hivemind's."""


@pytest.fixture(scope="module")
def hivemind_swarm() -> Iterator[ForeignProcess]:
    with hivemind_process("hivemind_swarm.py") as (process, _):
        yield ForeignProcess(process)


class Mixed:
    """The peers by number: ours first, then hivemind's."""

    def __init__(self, theirs: ForeignProcess) -> None:
        self.ours: list[Node] = []
        self.theirs = theirs
        self.their_peers: list[dict[str, Any]] = []

    async def store(self, at: int, key: str, value: object, expiration_time: float, subkey: str | None = None) -> bool:
        if at < EACH:
            return await self.ours[at].dht.store(key, value, expiration_time, subkey)
        return await self.theirs.do(
            "store", at=at - EACH, key=key, value=value, expiration_time=expiration_time, subkey=subkey
        )

    async def get(self, at: int, key: str, latest: bool = False) -> Any:
        """The value; the values by subkey."""
        if at < EACH:
            found = await self.ours[at].dht.get(key, latest)
            value = None if found is None else found.value
        else:
            value, _ = await self.theirs.do("get", at=at - EACH, key=key, latest=latest) or (None, None)
        return {subkey: item[0] for subkey, item in value.items()} if isinstance(value, dict) else value

    async def holders(self, key: str) -> tuple[set[int], set[int]]:
        """Who has a key stored, and who cached."""
        theirs = await self.theirs.do("holders", key=key)
        stored, cached = ({EACH + number for number in theirs[where]} for where in ("stored", "cached"))
        for number, node in enumerate(self.ours):
            protocol, now = node.dht.protocol, get_dht_time()
            stored |= {number} if protocol.storage.get(key_id(key), now) else set()
            cached |= {number} if protocol.cache.get(key_id(key), now) else set()
        return stored, cached

    def nearest(self, key: str) -> list[int]:
        ids = [*(node.dht.node_id for node in self.ours), *(peer["node_id"] for peer in self.their_peers)]
        return sorted(EVERYBODY, key=lambda number: ids[number] ^ key_id(key))

    async def contacts(self, at: int) -> set[PeerID]:
        if at < EACH:
            return {contact.peer for contact in self.ours[at].dht.protocol.table}
        return set(map(PeerID.from_base58, await self.theirs.do("contacts", at=at - EACH)))


@asynccontextmanager
async def mixed_swarm(theirs: ForeignProcess, *, ours_first: bool) -> AsyncIterator[Mixed]:
    swarm = Mixed(theirs)
    async with AsyncExitStack() as stack:

        async def ours(initial_peers: list[str]) -> None:
            swarm.ours.append(await stack.enter_async_context(Node(initial_peers, host_maddrs=LOOPBACK)))

        stack.push_async_callback(theirs.do, "leave")
        if ours_first:
            await ours([])
            initial_peers = [str(swarm.ours[0].visible_maddrs[0])]
            swarm.their_peers = await theirs.do("join", initial_peers=initial_peers, count=EACH)
        else:
            swarm.their_peers = await theirs.do("join", initial_peers=[], count=1)
        while len(swarm.ours) < EACH:
            await ours([swarm.their_peers[0]["maddr"]])
        if not ours_first:
            initial_peers = [str(swarm.ours[-1].visible_maddrs[0])]
            swarm.their_peers += await theirs.do("join", initial_peers=initial_peers, count=EACH - 1)
        yield swarm


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what is to happen in the end."""
    with trio.fail_after(60):
        while not await what():
            await trio.lowlevel.checkpoint()


async def they_have_found_each_other(swarm: Mixed) -> None:
    our_ids = {node.peer_id for node in swarm.ours}
    their_ids = {PeerID.from_base58(peer["peer_id"]) for peer in swarm.their_peers}
    for number in EVERYBODY:
        known = await swarm.contacts(number)
        assert len(known & our_ids) >= EACH // 2, number
        assert len(known & their_ids) >= EACH // 2, number


async def values_go_both_ways(swarm: Mixed) -> None:
    soon = get_dht_time() + 300
    for writer in SOME:
        assert await swarm.store(writer, f"of {writer}", [writer, "value", None, 1.5], soon)
    for writer in SOME:
        for reader in SOME:
            assert await swarm.get(reader, f"of {writer}", latest=reader == 8) == [writer, "value", None, 1.5]
    for reader in SOME:
        assert await swarm.get(reader, "nobody's") is None


async def parts_of_one_key_come_from_all(swarm: Mixed) -> None:
    soon = get_dht_time() + 300
    for number in EVERYBODY:
        assert await swarm.store(number, "parts", number, soon + number, subkey=f"peer {number}")
    for reader in SOME:
        found = await swarm.get(reader, "parts", latest=True)
        assert found == {f"peer {number}": number for number in EVERYBODY}


async def the_later_wins(swarm: Mixed) -> None:
    now = get_dht_time()
    for first, second in ((2, 12), (12, 2), (3, 4), (13, 14)):
        key = f"{first} before {second}"
        assert await swarm.store(first, key, "first", now + 200)
        assert await swarm.store(second, key, "second", now + 300)
        assert not await swarm.store(first, key, "too early", now + 100)
        for reader in SOME:
            assert await swarm.get(reader, key, latest=True) == "second"


async def everything_expires(swarm: Mixed) -> None:
    for writer in (5, 15):
        assert await swarm.store(writer, f"short {writer}", 1, get_dht_time() + 4)

    async def gone(key: str, reader: int) -> bool:
        return await swarm.get(reader, key) is None

    for reader in SOME:
        for writer in (5, 15):
            await until(lambda writer=writer, reader=reader: gone(f"short {writer}", reader))


async def replicas_are_of_both_kinds(swarm: Mixed) -> None:
    soon, kinds = get_dht_time() + 300, set()
    for number in range(8):
        writer, key = (number % 2) * EACH + number, f"replicated {number}"
        assert await swarm.store(writer, key, number, soon)
        stored, _ = await swarm.holders(key)
        assert len(stored) >= 5, key
        assert stored <= set(swarm.nearest(key)[:9]), key
        kinds |= {holder < EACH for holder in stored}
    assert kinds == {True, False}


async def what_is_found_is_cached_near_the_key(swarm: Mixed, writer: int, reader: int) -> None:
    """By the reader, and by some peer near the key, of whatever kind, that did not have it."""
    keys = (f"{writer} for {reader}, {number}" for number in itertools.count())
    key = next(
        key for key in keys if not {writer, reader} & set(near := swarm.nearest(key)[:8]) and min(near[:4]) < EACH
    )
    assert await swarm.store(writer, key, "popular", get_dht_time() + 300)
    if reader < EACH:  # of those who all have it, none would be given a copy
        stored, _ = await swarm.holders(key)
        swarm.ours[min(stored)].dht.protocol.storage.discard(key_id(key))
    assert await swarm.get(reader, key, latest=True) == "popular"

    async def cached() -> bool:
        _, cached = await swarm.holders(key)
        return reader in cached and bool(cached - {writer, reader})

    await until(cached)


@pytest.mark.parametrize("ours_first", [True, False], ids=["we were first", "hivemind was first"])
async def test_ten_of_each(hivemind_swarm: ForeignProcess, ours_first: bool):
    async with mixed_swarm(hivemind_swarm, ours_first=ours_first) as swarm:
        await values_go_both_ways(swarm)
        await parts_of_one_key_come_from_all(swarm)
        await the_later_wins(swarm)
        await replicas_are_of_both_kinds(swarm)
        for writer, reader in ((0, 9), (10, 19), (1, 18), (11, 8)):
            await what_is_found_is_cached_near_the_key(swarm, writer, reader)
        await everything_expires(swarm)
        await they_have_found_each_other(swarm)
