"""One bad request among good ones: it fails, they do not; and numbers that are not finite are not let in."""

from __future__ import annotations

import copy
import sys
import threading

import pytest
import torch
import trio
from torch import nn
from trio.testing import wait_all_tasks_blocked

from hivemind_p2p.errors import AnomalyDetected, ExpertError, ExpertFailed
from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend, Runtime
from tests.runtime.modules import Gate, Lambda, backend_of, ffn_backend, same, weights_of
from tests.runtime.test_runtime import occupy, open_up


async def together(pool, requests):
    """What each of the requests gets when they wait at the same time."""
    outcomes = {}

    async def caller(i, tensors):
        try:
            outcomes[i] = await pool.submit(*tensors)
        except ExpertError as error:
            outcomes[i] = error

    gate = Gate()
    before = backend_of(gate, "gate.0")
    with Runtime({"gate.0": before}) as runtime:
        pool.desk = runtime._desk
        async with trio.open_nursery() as nursery:
            await occupy(nursery, before.forward_pool, gate)
            for i, tensors in enumerate(requests):
                nursery.start_soon(caller, i, tensors)
                await wait_all_tasks_blocked()
            open_up(gate)
        pool.desk = None
    return [outcomes[i] for i in range(len(requests))]


async def test_a_module_that_raises_fails_the_request_that_it_raised_for(caplog):
    module = Lambda(lambda x: x * 2 if (x >= 0).all() else sys.exit("negative"))
    pool = backend_of(module, "odd.0", max_batch_size=4).forward_pool
    values = [1.0, 2.0, 3.0, -1.0, 5.0, -6.0]
    outcomes = await together(pool, [(torch.full((1, 2), value),) for value in values])
    for value, outcome in zip(values, outcomes, strict=True):
        if value > 0:
            assert torch.equal(outcome[0], torch.full((1, 2), 2 * value))
        else:
            assert "odd.0_forward failed on a batch of 1 rows: SystemExit: negative" in str(outcome)
            assert isinstance(outcome.__cause__, SystemExit)
    assert outcomes[3] is not outcomes[5]
    assert module.seen == [4, 2, 2, 1, 1, 2, 1, 1]
    assert "a batch of odd.0_forward failed (4 requests, 4 rows)" in caplog.text
    assert "(2 requests, 2 rows)" in caplog.text, "the second batch"
    assert caplog.text.count("failed (") == 2, "halves are not reported"
    assert (pool.stats.batches, pool.stats.tasks, pool.stats.failed_batches, pool.stats.failed_tasks) == (3, 4, 5, 2)


class PoisonsItsWeights(nn.Module):
    """Finite outputs and input gradients; where the second column is 1, gradients of the weights are not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        y = self.linear(x)
        trap = torch.sqrt((1 - x.detach()[:, 1:]) * self.linear.bias[0] ** 2)  # its derivative at 0 is infinite
        return y + trap


async def test_the_good_requests_of_a_batch_make_the_step_that_they_would_have_made_alone():
    module = PoisonsItsWeights()
    local = copy.deepcopy(module)
    expert, alone = (backend_of(each, optimizer=torch.optim.SGD(each.parameters(), lr=0.5)) for each in (module, local))
    good = [(torch.tensor([[float(i), 0.0]]), torch.ones(1, 2)) for i in range(4)]
    bad = (torch.tensor([[1.0, 1.0]]), torch.ones(1, 2))
    outcomes = await together(expert.backward_pool, [*good[:2], bad, *good[2:]])
    assert isinstance(outcomes.pop(2), AnomalyDetected)
    assert all(isinstance(outcome, tuple) for outcome in outcomes)
    alone.backward(*(torch.cat(column) for column in zip(*good, strict=True)))
    for ours, theirs in zip(module.parameters(), local.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (expert.update_count, expert.examples_processed, expert.skipped_updates) == (1, 4, 1)


async def test_an_update_is_not_made_twice_when_something_fails_behind_it():
    class Falls(torch.optim.SGD):
        def step(self):
            super().step()
            raise RuntimeError("fell over after the step")

    module = nn.Linear(2, 2, bias=False)
    expert = backend_of(module, optimizer=Falls(module.parameters(), lr=1.0))
    before = weights_of(module)[0]
    outcomes = await together(expert.backward_pool, [(torch.ones(1, 2), torch.ones(1, 2))] * 3)
    for outcome in outcomes:
        assert isinstance(outcome, ExpertFailed)
        assert "fell over after the step" in str(outcome)
    assert torch.equal(module.weight, before - 3)
    assert module.weight.grad is None


async def test_a_delayed_step_comes_after_the_answers_and_before_the_next_batch():
    seen = []

    class Slow(torch.optim.SGD):
        def step(self):
            seen.append(answered.wait(10))
            super().step()

    answered = threading.Event()
    module = nn.Linear(2, 2)
    optimizer = Slow(module.parameters(), lr=1.0)
    expert, before = backend_of(module, optimizer=optimizer, delayed_step=True), weights_of(module)
    async with Runtime({"test.0": expert}):
        await expert.backward_pool.submit(torch.ones(1, 2), torch.ones(1, 2))
        answered.set()
        (y,) = await expert.forward_pool.submit(torch.ones(1, 2))
    assert seen == [True]
    assert not same(module.parameters(), before)
    assert torch.equal(y, module(torch.ones(1, 2)))


@pytest.mark.parametrize("rows", [1, 100_000])
async def test_what_is_not_finite_is_refused_before_it_waits(rows):
    expert, x = ffn_backend(), torch.zeros(rows, 8)
    expert.module.register_forward_pre_hook(lambda *_: pytest.fail("it was computed"))
    bad = x.clone()
    bad[rows - 1, 3] = float("nan")
    async with Runtime({"ffn.0": expert}):
        with pytest.raises(AnomalyDetected, match=f"input 0 has NaN or infinity in row {rows - 1}; nothing was"):
            await expert.forward_pool.submit(bad)
        bad[rows - 1, 3] = float("-inf")
        with pytest.raises(AnomalyDetected, match="the gradient of output 0 has NaN or infinity"):
            await expert.backward_pool.submit(x, bad)
    assert expert.update_count == 0


async def test_infinities_that_mean_something_can_be_let_in():
    expert = ExpertBackend(
        "masked.0", Lambda(lambda x, mask: (x + mask).softmax(1)), detect_anomalies=False,
        args_schema=[BatchTensorDescriptor(2), BatchTensorDescriptor(2)],
    )  # fmt: skip
    mask = torch.tensor([[0.0, float("-inf")]])
    async with Runtime({"masked.0": expert}):
        (y,) = await expert.forward_pool.submit(torch.ones(1, 2), mask)
    assert torch.equal(y, torch.tensor([[1.0, 0.0]]))


async def test_nobody_is_sent_garbage():
    """Outputs that are not finite are an error for whom they would have been for."""
    pool = backend_of(Lambda(lambda x: 1 / x), "inverse.0").forward_pool
    fine, garbage, also_fine = await together(pool, [(torch.full((1, 2), value),) for value in (1.0, 0.0, 2.0)])
    assert torch.equal(fine[0], torch.ones(1, 2))
    assert torch.equal(also_fine[0], torch.full((1, 2), 0.5))
    assert isinstance(garbage, AnomalyDetected)
    assert "output 0 of expert inverse.0 would have NaN or infinity" in str(garbage)
    assert pool.stats.anomalies == 1
