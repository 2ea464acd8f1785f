"""Requests of Trio tasks, computed on the device thread: everybody's own rows, company, order, trouble."""

from __future__ import annotations

import copy
import math
import threading
from functools import partial

import pytest
import torch
import trio
from trio.testing import wait_all_tasks_blocked

from hivemind_p2p.errors import ConfigError, Overloaded, SchemaMismatch
from hivemind_p2p.runtime import Runtime, TaskPool
from hivemind_p2p.runtime import runtime as runtime_module
from hivemind_p2p.runtime.memory import give_back_memory
from tests.runtime.modules import Gate, Lambda, backend_of, ffn_backend


async def occupy(nursery: trio.Nursery, pool: TaskPool, gate: Gate) -> None:
    """Send a request, and return when it holds the device thread."""
    gate.shut = True
    nursery.start_soon(pool.submit, torch.zeros(1, 2))
    await trio.to_thread.run_sync(gate.entered.acquire, True, 30)


def open_up(gate: Gate) -> None:
    gate.shut = False
    gate.may_go.release()


async def test_forward_and_backward_equal_the_local_module():
    backend = ffn_backend(lr=0.1)
    local = copy.deepcopy(backend.module)
    x, grad = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8)
    expected = local(x)
    expected.backward(grad)
    torch.optim.SGD(local.parameters(), lr=0.1).step()
    async with Runtime({"ffn.0": backend}, device="cpu"):
        (outputs,) = await backend.forward_pool.submit(x.detach())
        (input_grads,) = await backend.backward_pool.submit(x.detach(), grad)
    assert torch.equal(outputs, expected)
    assert torch.equal(input_grads, x.grad)
    for served, ours in zip(backend.module.parameters(), local.parameters(), strict=True):
        assert torch.equal(served, ours)


async def test_many_callers_of_many_experts_get_their_own_rows():
    experts = {f"ffn.{i}": ffn_backend(f"ffn.{i}", max_batch_size=16, lr=0.0) for i in range(3)}
    local = {name: copy.deepcopy(expert.module) for name, expert in experts.items()}
    sizes: dict[str, list[int]] = {name: [] for name in experts}
    for name, expert in experts.items():
        expert.module.register_forward_pre_hook(lambda _, args, sizes=sizes[name]: sizes.append(len(args[0])))
    answers = []

    async def caller(i: int) -> None:
        name = f"ffn.{i % 3}"
        x, grad = torch.randn(1 + i % 20, 8, requires_grad=True), torch.randn(1 + i % 20, 8)
        (y,) = await experts[name].forward_pool.submit(x.detach())
        (x_grad,) = await experts[name].backward_pool.submit(x.detach(), grad)
        answers.append((local[name](x), y, torch.autograd.grad(local[name](x), x, grad)[0], x_grad))

    async with Runtime(experts), trio.open_nursery() as nursery:
        for i in range(90):
            nursery.start_soon(caller, i)
    assert len(answers) == 90
    for expected, y, expected_grad, x_grad in answers:
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(x_grad, expected_grad)
    for name, expert in experts.items():
        pools = (expert.forward_pool, expert.backward_pool)
        assert max(sizes[name]) <= 16
        assert sum(pool.stats.tasks for pool in pools) == 60
        assert sum(pool.stats.rows for pool in pools) == sum(sizes[name])
        assert expert.update_count == expert.backward_pool.stats.batches


async def test_who_waits_is_computed_together_oldest_first():
    gate, computed = Gate(), []
    expert = backend_of(gate, max_batch_size=4)
    gate.register_forward_pre_hook(lambda _, args: computed.append(args[0][:, 0].tolist()))

    async def caller(value: int, rows: int) -> None:
        (y,) = await expert.forward_pool.submit(torch.full((rows, 2), float(value)))
        assert torch.equal(y, torch.full((rows, 2), 2.0 * value))

    async with Runtime({"test.0": expert}) as runtime, trio.open_nursery() as nursery:
        await occupy(nursery, expert.forward_pool, gate)
        for value, rows in enumerate([2, 1, 2, 1, 9], start=1):
            nursery.start_soon(caller, value, rows)
            await wait_all_tasks_blocked()
        assert repr(expert.forward_pool) == (
            "<TaskPool test.0_forward: 5 requests of 15 rows waiting, 0 batches of 0 rows done, 0 failed>"
        )
        assert repr(runtime) == "<Runtime on cpu: running, 1 experts, 5 requests waiting, 0 batches done>"
        open_up(gate)
    assert computed == [[0], [1, 1, 2], [3, 3, 4], [5, 5, 5], [5, 5, 5], [5, 5, 5]]
    stats = expert.forward_pool.stats
    assert (stats.batches, stats.tasks, stats.rows) == (4, 6, 16)
    assert stats.seconds > 0
    assert repr(runtime) == "<Runtime on cpu: not running, 1 experts, 0 requests waiting, 4 batches done>"


async def test_who_learns_together_makes_one_step():
    expert = ffn_backend(min_batch_size=5, batch_wait_timeout_s=3600)
    local = ffn_backend()
    local.module.load_state_dict(expert.module.state_dict())
    x, grad = torch.randn(5, 8), torch.randn(5, 8)
    local.backward(x, grad)
    async with Runtime({"ffn.0": expert}), trio.open_nursery() as nursery:
        nursery.start_soon(expert.backward_pool.submit, x[:2], grad[:2])
        await wait_all_tasks_blocked()
        nursery.start_soon(expert.backward_pool.submit, x[2:], grad[2:])
    assert (expert.update_count, expert.examples_processed) == (1, 5)
    for served, ours in zip(expert.module.parameters(), local.module.parameters(), strict=True):
        torch.testing.assert_close(served, ours)


async def test_tensors_of_inference_mode_may_be_sent():
    expert = ffn_backend()
    with torch.inference_mode():
        x = torch.ones(1, 8)
    async with Runtime({"ffn.0": expert}):
        await expert.forward_pool.submit(x)
        await expert.backward_pool.submit(x, x)
    assert expert.update_count == 1


async def test_one_step_for_a_large_backward_and_one_for_each_batch():
    expert = ffn_backend(max_batch_size=4)
    async with Runtime({"ffn.0": expert}):
        await expert.backward_pool.submit(torch.randn(11, 8), torch.randn(11, 8))
        assert (expert.update_count, expert.examples_processed) == (1, 11)
        await expert.backward_pool.submit(torch.randn(1, 8), torch.randn(1, 8))
        assert (expert.update_count, expert.examples_processed) == (2, 12)


@pytest.mark.parametrize(
    ("priorities", "order", "complains"),
    [
        ((None, None, None), ["a", "b", "c"], False),
        ((1.0, -1.0, 0.0), ["b", "c", "a"], False),
        ((None, None, lambda oldest: oldest - 3600), ["c", "a", "b"], False),
        ((None, float("nan"), None), ["a", "c", "b"], False),
        ((None, None, lambda oldest: 1 / 0), ["a", "b", "c"], True),
        ((None, None, "soon"), ["a", "b", "c"], True),
    ],
)
async def test_the_oldest_waiting_task_decides_unless_the_pool_says_otherwise(priorities, order, complains, caplog):
    gate, served = Gate(), []
    experts = {name: backend_of(Lambda(lambda x, name=name: served.append(name) or x + 1), name) for name in "abc"}
    served.clear()  # who were asked for their outputs
    experts["gate"] = backend_of(gate)
    async with Runtime(experts), trio.open_nursery() as nursery:
        await occupy(nursery, experts["gate"].forward_pool, gate)
        for name, priority in zip("abc", priorities, strict=True):
            experts[name].forward_pool.priority = priority
            nursery.start_soon(experts[name].forward_pool.submit, torch.zeros(1, 2))
            await wait_all_tasks_blocked()
        open_up(gate)
    assert served == order
    assert ("the priority of c_forward cannot be used" in caplog.text) == complains


async def test_a_request_that_may_wait_does_not_put_its_pool_ahead_of_others():
    gate, served = Gate(), []
    experts = {
        name: backend_of(Lambda(lambda x, name=name: served.append(name) or x + 1), name, max_batch_size=1)
        for name in ("busy", "other")
    }
    served.clear()
    experts["gate"] = backend_of(gate)
    async with Runtime(experts), trio.open_nursery() as nursery:
        await occupy(nursery, experts["gate"].forward_pool, gate)
        for name, priority in [("busy", 1.0), ("busy", 0.0), ("other", 0.0), ("busy", 0.0)]:
            submit = partial(experts[name].forward_pool.submit, priority=priority)
            nursery.start_soon(submit, torch.zeros(1, 2))
            await wait_all_tasks_blocked()
        open_up(gate)
    assert served == ["busy", "other", "busy", "busy"]


async def test_a_lone_request_is_computed_whatever_min_batch_size_says():
    expert = ffn_backend(min_batch_size=32, batch_wait_timeout_s=0.01)
    async with Runtime({"ffn.0": expert}):
        (y,) = await expert.forward_pool.submit(torch.randn(1, 8))
        assert y.shape == (1, 8)


async def test_min_batch_size_brings_requests_together():
    expert = ffn_backend(min_batch_size=4, batch_wait_timeout_s=3600)
    async with Runtime({"ffn.0": expert}), trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(expert.forward_pool.submit, torch.randn(1, 8))
    assert (expert.forward_pool.stats.batches, expert.forward_pool.stats.rows) == (1, 4)


async def test_company_may_be_waited_for_without_end():
    expert = ffn_backend(min_batch_size=2, batch_wait_timeout_s=math.inf)
    runtime = Runtime({"ffn.0": expert})
    async with runtime, trio.open_nursery() as nursery:
        nursery.start_soon(expert.forward_pool.submit, torch.randn(1, 8))
        await wait_all_tasks_blocked()
        await expert.backward_pool.between_batches(lambda: None)  # the device thread has come to wait, or will now
        nursery.start_soon(expert.forward_pool.submit, torch.randn(1, 8))
    assert expert.forward_pool.stats.batches == 1


async def test_no_rows_need_no_device():
    gate = Gate()
    expert = backend_of(gate)
    async with Runtime({"test.0": expert}), trio.open_nursery() as nursery:
        await occupy(nursery, expert.forward_pool, gate)
        (y,) = await expert.forward_pool.submit(torch.zeros(0, 2))
        assert y.shape == (0, 2)
        (y,) = await expert.backward_pool.submit(torch.zeros(0, 2), torch.zeros(0, 2))
        assert y.shape == (0, 2)
        open_up(gate)


async def test_what_does_not_fit_is_refused_and_the_runtime_lives_on():
    backend = ffn_backend()
    async with Runtime({"ffn.0": backend}):
        with pytest.raises(SchemaMismatch, match=r"input 0: expected shape \(any, 8\), got \(5, 9\)"):
            await backend.forward_pool.submit(torch.randn(5, 9))
        with pytest.raises(SchemaMismatch, match=r"expected 2 tensors \(input 0, the gradient of output 0\), got 1"):
            await backend.backward_pool.submit(torch.randn(5, 8))
        (outputs,) = await backend.forward_pool.submit(torch.randn(5, 8))
        assert outputs.shape == (5, 8)


async def test_a_full_line_refuses_at_once():
    gate = Gate()
    expert = backend_of(gate, max_queue_tasks=2)
    async with Runtime({"test.0": expert}), trio.open_nursery() as nursery:
        await occupy(nursery, expert.forward_pool, gate)
        for _ in range(2):
            nursery.start_soon(expert.forward_pool.submit, torch.zeros(1, 2))
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="2 requests of 2 rows waiting") as refused:
            await expert.forward_pool.submit(torch.zeros(1, 2))
        assert refused.value.retry_after == 0.05, "nothing has been computed yet from which to tell"
        expert.forward_pool.stats.rows, expert.forward_pool.stats.seconds = 10, 7.0
        with pytest.raises(Overloaded, match=r"another replica \(retry after 1\.40 s\)"):
            await expert.forward_pool.submit(torch.zeros(1, 2))
        open_up(gate)


async def test_clients_take_turns_and_urgent_requests_go_first():
    gate, computed = Gate(), []
    expert = backend_of(gate, max_batch_size=1)
    gate.register_forward_pre_hook(lambda _, args: computed.append(args[0][0, 0].item()))
    async with Runtime({"test.0": expert}), trio.open_nursery() as nursery:
        await occupy(nursery, expert.forward_pool, gate)
        for value, client, priority in [(1, "a", 0), (2, "a", 0), (3, "b", 0), (4, "c", 5), (5, "c", -1)]:
            submit = partial(expert.forward_pool.submit, client=client, priority=priority)
            nursery.start_soon(submit, torch.full((1, 2), float(value)))
            await wait_all_tasks_blocked()
        open_up(gate)
    assert computed == [0, 5, 1, 3, 2, 4]


async def test_devices_that_cannot_be_used():
    with pytest.raises(ConfigError, match=r"device cuda:99 cannot be used"):
        async with Runtime({"ffn.0": ffn_backend()}, device="cuda:99"):
            pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
async def test_requests_are_computed_together_on_a_gpu():
    expert = ffn_backend(lr=0.0, max_batch_size=16)
    local = copy.deepcopy(expert.module)

    async def caller(rows: int) -> None:
        x, grad = torch.randn(rows, 8, requires_grad=True), torch.randn(rows, 8)
        (y,) = await expert.forward_pool.submit(x.detach())
        torch.testing.assert_close(y, local(x).detach(), rtol=1e-3, atol=1e-3)
        (x_grad,) = await expert.backward_pool.submit(x.detach(), grad)
        torch.testing.assert_close(x_grad, torch.autograd.grad(local(x), x, grad)[0], rtol=1e-3, atol=1e-3)

    async with Runtime({"ffn.0": expert}, device="cuda") as runtime, trio.open_nursery() as nursery:
        assert runtime.device == torch.device("cuda:0")
        for rows in range(1, 40):
            nursery.start_soon(caller, rows)


async def test_a_device_without_work_gives_memory_back_once(monkeypatch):
    given, times = threading.Semaphore(0), []
    monkeypatch.setattr(runtime_module, "_IDLE", 0.01)
    monkeypatch.setattr(
        runtime_module, "give_back_memory", lambda: (times.append(expert.update_count), given.release())
    )
    expert = ffn_backend()
    async with Runtime({"ffn.0": expert}):
        for number in range(1, 4):
            await expert.backward_pool.submit(torch.randn(1, 8), torch.randn(1, 8))
            assert await trio.to_thread.run_sync(given.acquire, True, 30)
            assert times[-1] == number
        await expert.forward_pool.between_batches(lambda: None)  # a job is no batch
    assert times == [1, 2, 3]


def test_memory_that_is_given_back_can_be_used_again():
    give_back_memory()
    assert torch.ones(2**20).sum() == 2**20


async def test_a_device_that_is_never_idle_gives_memory_back_each_minute_between_two_batches(monkeypatch):
    now, given = [0.0], []
    monkeypatch.setattr(runtime_module, "_IDLE", 1e6)
    monkeypatch.setattr(runtime_module, "give_back_memory", lambda: given.append(now[0]))
    expert = ffn_backend()
    async with Runtime({"ffn.0": expert}, clock=lambda: now[0]):
        for now[0] in (0.0, 59.0, 61.0, 62.0, 120.0, 121.0, 200.0):
            await expert.forward_pool.submit(torch.randn(1, 8))
    assert given == [61.0, 121.0, 200.0]
