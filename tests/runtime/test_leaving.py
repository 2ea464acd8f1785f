"""Callers who go away, and Runtimes that are shut down."""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest
import torch
import trio
from trio.testing import wait_all_tasks_blocked

from hivemind_p2p.errors import ConfigError, NodeClosed, Overloaded
from hivemind_p2p.runtime import Runtime, TaskPool
from tests.runtime.modules import Gate, backend_of, ffn_backend
from tests.runtime.test_runtime import occupy, open_up


async def test_a_cancelled_request_is_not_computed():
    gate = Gate()
    expert = backend_of(gate)
    async with Runtime({"test.0": expert}), trio.open_nursery() as nursery:
        await occupy(nursery, expert.forward_pool, gate)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as leaving:
                leaving.start_soon(expert.forward_pool.submit, torch.zeros(3, 2))
                await wait_all_tasks_blocked()
                assert expert.forward_pool.queue.rows == 3
                scope.cancel()
        assert len(expert.forward_pool.queue) == expert.forward_pool.queue.rows == 0
        open_up(gate)
        await expert.forward_pool.submit(torch.zeros(1, 2))
    assert gate.seen == [1, 1]


async def test_already_cancelled_is_never_queued():
    gate = Gate()
    expert = backend_of(gate)
    async with Runtime({"test.0": expert}):
        with trio.CancelScope() as scope:
            scope.cancel()
            await expert.forward_pool.submit(torch.zeros(3, 2))
        with trio.CancelScope() as scope:
            scope.cancel()
            await expert.forward_pool.submit(torch.zeros(0, 2))
        assert scope.cancelled_caught
    assert gate.seen == []


async def test_who_leaves_while_it_is_computed_misses_the_answer_and_nothing_else():
    gate = Gate()
    expert = backend_of(gate)
    async with Runtime({"test.0": expert}):
        async with trio.open_nursery() as leaving:
            await occupy(leaving, expert.forward_pool, gate)
            leaving.cancel_scope.cancel()
        open_up(gate)
        (y,) = await expert.forward_pool.submit(torch.ones(1, 2))
        assert torch.equal(y, torch.full((1, 2), 2.0))


async def test_a_large_request_is_given_up_between_its_pieces():
    gate = Gate()
    expert = backend_of(gate, max_batch_size=1)
    async with Runtime({"test.0": expert}):
        async with trio.open_nursery() as leaving:
            gate.shut = True
            leaving.start_soon(expert.forward_pool.submit, torch.ones(100, 2))
            await trio.to_thread.run_sync(gate.entered.acquire, True, 30)
            leaving.cancel_scope.cancel()
        open_up(gate)
        await expert.forward_pool.submit(torch.ones(1, 2))
    assert gate.seen == [1, 1]
    assert expert.forward_pool.stats.batches == 1


async def test_shutdown_finishes_the_batch_under_way_and_refuses_who_waits():
    gate = Gate()
    expert = backend_of(gate, max_batch_size=1)
    outcomes = []

    async def caller() -> None:
        try:
            outcomes.append(await expert.forward_pool.submit(torch.ones(1, 2)))
        except NodeClosed as error:
            outcomes.append(error)
            open_up(gate)  # the first is still being computed, and the Runtime waits for it

    async with trio.open_nursery() as nursery, Runtime({"test.0": expert}):
        gate.shut = True
        nursery.start_soon(caller)
        await trio.to_thread.run_sync(gate.entered.acquire, True, 30)
        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
    refused, (computed,) = outcomes
    assert "shut down before it came to this request" in str(refused)
    assert torch.equal(computed, torch.full((1, 2), 2.0))
    with pytest.raises(NodeClosed, match=r"no Runtime serves test\.0_forward"):
        await expert.forward_pool.submit(torch.ones(1, 2))


async def test_a_batch_that_never_ends_is_left_behind(caplog):
    gate = Gate()
    expert = backend_of(gate)
    outcomes = []

    async def caller() -> None:
        with pytest.raises(NodeClosed):
            await expert.forward_pool.submit(torch.ones(1, 2))
        outcomes.append("refused")

    async with trio.open_nursery() as nursery, Runtime({"test.0": expert}, shutdown_timeout=0.01):
        gate.shut = True
        nursery.start_soon(caller)
        await trio.to_thread.run_sync(gate.entered.acquire, True, 30)
    assert outcomes == ["refused"]
    assert "left a batch behind" in caplog.text
    open_up(gate)


async def test_leaving_while_cancelled_still_shuts_down():
    expert = ffn_backend()
    with trio.CancelScope() as scope:
        async with Runtime({"ffn.0": expert}) as runtime:
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert "not running" in repr(runtime)


async def test_nobody_is_served_outside_of_a_runtime():
    expert = ffn_backend()
    with pytest.raises(NodeClosed, match=r"no Runtime serves ffn\.0_forward"):
        await expert.forward_pool.submit(torch.randn(1, 8))
    runtime = Runtime({"ffn.0": expert})
    runtime.shutdown()  # never started: nothing to do
    async with Runtime({"ffn.0": expert}):
        with pytest.raises(ConfigError, match=r"another Runtime serves ffn\.0_forward, ffn\.0_backward"):
            Runtime({"ffn.0": expert}).start()


class ShutDownMeanwhile(TaskPool):
    """Another thread shuts its Runtime down each time just after somebody has seen that it runs."""

    @property
    def desk(self):
        running, self.running = self.running, None
        if running is not None:
            running.close()
        return running


@pytest.mark.parametrize("ask", ["submit", "between_batches"])
async def test_a_runtime_that_is_shut_down_just_then(ask):
    expert = ffn_backend()
    async with Runtime({"ffn.0": expert}):
        pool = expert.forward_pool
        pool.running = pool.desk
        pool.__class__ = ShutDownMeanwhile
        with pytest.raises(NodeClosed, match="shut down"):
            await (pool.submit(torch.randn(1, 8)) if ask == "submit" else pool.between_batches(lambda: None))
        pool.__class__ = TaskPool


async def test_a_runtime_runs_once_but_its_experts_may_run_again():
    expert = ffn_backend()
    async with Runtime({"ffn.0": expert}) as runtime:
        await expert.forward_pool.submit(torch.randn(1, 8))
    with pytest.raises(NodeClosed, match="runs only once"):
        runtime.start()
    async with Runtime({"ffn.0": expert}):
        await expert.forward_pool.submit(torch.randn(1, 8))


class FatalError(BaseException):
    """What no boundary catches."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_when_the_device_thread_dies_nobody_is_left_waiting():
    gate = Gate()
    expert = backend_of(gate, max_batch_size=1)
    refused = []

    async def caller() -> None:
        with pytest.raises(NodeClosed):
            await expert.forward_pool.submit(torch.zeros(1, 2))
        refused.append(True)

    def die(x: torch.Tensor) -> torch.Tensor:
        raise FatalError

    async with Runtime({"test.0": expert}):
        gate.shut, gate.function = True, die
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller)
            await trio.to_thread.run_sync(gate.entered.acquire, True, 30)
            nursery.start_soon(caller)
            await wait_all_tasks_blocked()
            open_up(gate)
        await caller()
    assert refused == [True, True, True]


def test_several_trio_runs_and_plain_threads_share_a_runtime():
    expert = ffn_backend()
    answers = []

    async def caller() -> None:
        async with trio.open_nursery() as nursery:
            for rows in range(1, 6):
                nursery.start_soon(submit, rows)

    async def submit(rows: int) -> None:
        (y,) = await expert.forward_pool.submit(torch.randn(rows, 8))
        answers.append(y.shape[0] == rows)

    with Runtime({"ffn.0": expert}):
        threads = [threading.Thread(target=trio.run, args=(caller,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert answers == [True] * 15


def test_a_trio_run_that_ended_does_not_disturb_the_others():
    gate = Gate()
    expert = backend_of(gate)

    async def leave_early() -> None:
        async with trio.open_nursery() as nursery:
            await occupy(nursery, expert.forward_pool, gate)
            nursery.cancel_scope.cancel()

    async def stay() -> None:
        (y,) = await expert.forward_pool.submit(torch.ones(1, 2))
        assert torch.equal(y, torch.full((1, 2), 2.0))

    with Runtime({"test.0": expert}):
        trio.run(leave_early)
        open_up(gate)
        trio.run(stay)


async def test_whoever_leaves_and_whenever_the_others_get_their_own_answers():
    """Callers of several experts with too little room, of whom some give up at any moment."""
    chance = random.Random(0)
    experts = {f"ffn.{i}": ffn_backend(f"ffn.{i}", lr=0.0, max_batch_size=4, max_queue_rows=20) for i in range(3)}
    ends: Counter[str] = Counter()

    async def caller(patience: int) -> None:
        expert = chance.choice(list(experts.values()))
        x = torch.randn(chance.choice([0, 1, 2, 3, 11]), 8)
        with trio.CancelScope() as scope:
            nursery.start_soon(leave_after, patience, scope)
            try:
                (y,) = await expert.forward_pool.submit(x)
            except Overloaded:
                ends["refused"] += 1
            else:
                torch.testing.assert_close(y, expert.module(x))
                ends["answered"] += 1
        ends["left"] += scope.cancelled_caught

    async def leave_after(patience: int, scope: trio.CancelScope) -> None:
        for _ in range(patience):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with Runtime(experts), trio.open_nursery() as nursery:
        for _ in range(600):
            nursery.start_soon(caller, chance.choice([1, 3, 10, 30, 10_000]))
            await trio.lowlevel.checkpoint()
    assert sum(ends.values()) == 600
    assert ends["answered"] > 0
    for expert in experts.values():
        assert len(expert.forward_pool.queue) == expert.forward_pool.queue.rows == 0
