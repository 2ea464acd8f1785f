"""Calls that are given up at any point: neither side holds anything of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from hivemind_p2p.rpc import RPC
from hivemind_p2p.rpc.channel_serving import IDLE
from hivemind_p2p.wire.dht_pb2 import FindRequest
from tests.cancelling import cancelled_at_each_step
from tests.transport.hosts import at_peace


async def answer(request: FindRequest, context: object) -> FindRequest:
    await trio.sleep(0.001)
    return request


async def answer_each(requests: AsyncIterator[FindRequest], context: object) -> AsyncIterator[FindRequest]:
    async for request in requests:
        yield request


async def three(request: FindRequest) -> AsyncIterator[FindRequest]:
    for _ in range(3):
        yield request


@pytest.mark.parametrize(("method", "size"), [("S.one", 10), ("S.one", 2_000_000), ("S.many", 100_000)])
async def test_a_call_leaves_nothing(autojump_clock, pair: tuple[RPC, RPC], method: str, size: int):
    caller, callee = pair
    callee.register("S.one", FindRequest, answer)
    callee.register_stream("S.many", FindRequest, answer_each)
    peer, request = callee.network.peer_id, FindRequest(keys=[bytes(size)])
    assert await caller.call(peer, "S.one", request, FindRequest) == request
    await trio.sleep(3 * IDLE)
    before = trio.lowlevel.current_statistics().tasks_living

    async def call() -> None:
        if method == "S.one":
            assert await caller.call(peer, method, request, FindRequest) == request
            return
        async with caller.stream_call(peer, method, three(request), FindRequest) as responses:
            assert [response async for response in responses] == [request] * 3

    async def afterwards() -> None:
        await trio.sleep(3 * IDLE)  # the channel of calls has ended
        at_peace(caller.network, callee.network)
        for rpc in pair:
            assert (len(rpc._under_way), rpc._budget._accounts) == (0, {})
            for slots, *_ in rpc._methods.values():
                assert (slots._peers, slots._all.value) == ({}, rpc.settings.max_calls)
        assert trio.lowlevel.current_statistics().tasks_living == before

    assert await cancelled_at_each_step(call, afterwards, every=1 if size == 10 else 2) > 5
