"""Callers who do not wait for ever, and servers who have no room: who is dropped, and what the others are told."""

from __future__ import annotations

import pytest
import torch
import trio
from trio.testing import wait_all_tasks_blocked

from hivemind_p2p.compression import serialize_tensor
from hivemind_p2p.errors import Overloaded, RemoteError
from hivemind_p2p.wire import runtime_pb2
from hivemind_p2p.wire.expert_metadata import Urgency, Wish, pack_wish
from tests.runtime.modules import Gate, backend_of
from tests.runtime.test_runtime import occupy, open_up
from tests.server.test_handler import serving


def request(rows, urgency):
    tensors = [serialize_tensor(torch.zeros(rows, 2))]
    return runtime_pb2.ExpertRequest(uid="test.0", tensors=tensors, metadata=pack_wish(Wish(), urgency))


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_its_caller_does_not_wait_for_any_more_is_not_computed(pair, streamed):
    gate = Gate()
    expert = backend_of(gate)
    async with serving(pair, {"test.0": expert}) as (caller, _), trio.open_nursery() as nursery:
        await occupy(nursery, expert.forward_pool, gate)
        late = request(7, Urgency(timeout=0.01))
        with pytest.raises(RemoteError, match=r"DeadlineExceeded: test\.0_forward had no answer within the 0\.01 s"):
            await (caller.send_stream("forward", [late]) if streamed else caller.send("forward", late))
        assert len(expert.forward_pool.queue) == 0
        open_up(gate)
        [outputs] = await caller.unary("forward", "test.0", torch.ones(1, 2))
        assert torch.equal(outputs, torch.full((1, 2), 2.0))
    assert gate.seen == [1, 1], "not the seven rows"


async def test_a_request_that_may_wait_does(pair):
    gate = Gate()
    expert = backend_of(gate, max_batch_size=4)
    async with serving(pair, {"test.0": expert}) as (caller, _), trio.open_nursery() as nursery:
        await occupy(nursery, expert.forward_pool, gate)
        for rows, priority in [(2, 1.0), (3, 0.0)]:
            nursery.start_soon(caller.send, "forward", request(rows, Urgency(60, priority)))
            while expert.forward_pool.queue.rows < rows:
                await wait_all_tasks_blocked()
        open_up(gate)
    assert gate.seen == [1, 3, 2]


async def test_a_full_line_says_when_to_come_again(pair):
    gate = Gate()
    expert = backend_of(gate, max_queue_tasks=1)
    async with serving(pair, {"test.0": expert}) as (caller, _), trio.open_nursery() as nursery:
        await occupy(nursery, expert.forward_pool, gate)
        nursery.start_soon(caller.unary, "forward", "test.0", torch.zeros(1, 2))
        while not len(expert.forward_pool.queue):
            await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as refused:
            await caller.unary("forward", "test.0", torch.zeros(1, 2))
        assert refused.value.retry_after == 0.05
        open_up(gate)
