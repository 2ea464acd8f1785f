"""Requests of Trio tasks, computed on the device thread: results, gradients, company, trouble."""

from __future__ import annotations

import copy

import pytest
import torch
import trio
from torch import nn

from hivemind_p2p.errors import ExpertFailed, NodeClosed, SchemaMismatch
from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend, Runtime


def ffn(**options) -> ExpertBackend:
    module = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return ExpertBackend("ffn.0", module, args_schema=[BatchTensorDescriptor(8)], optimizer=optimizer, **options)


async def test_forward_and_backward_equal_the_local_module():
    backend = ffn()
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


async def test_what_does_not_fit_is_refused_and_the_runtime_lives_on():
    backend = ffn()
    async with Runtime({"ffn.0": backend}):
        with pytest.raises(SchemaMismatch, match=r"input 0: expected shape \(any, 8\), got \(5, 9\)"):
            await backend.forward_pool.submit(torch.randn(5, 9))
        (outputs,) = await backend.forward_pool.submit(torch.randn(5, 8))
        assert outputs.shape == (5, 8)


class FailsOnNegative(nn.Module):
    def forward(self, x):
        if (x < 0).any():
            raise ValueError("negative input")
        return x * 2


async def test_a_module_that_raises_fails_its_batch_only():
    backend = ExpertBackend("odd.0", FailsOnNegative(), args_schema=[BatchTensorDescriptor(2)])
    async with Runtime({"odd.0": backend}):
        with pytest.raises(
            ExpertFailed, match=r"odd\.0_forward failed on a batch of 1 rows: ValueError: negative input"
        ):
            await backend.forward_pool.submit(-torch.ones(1, 2))
        (outputs,) = await backend.forward_pool.submit(torch.ones(1, 2))
    assert torch.equal(outputs, torch.full((1, 2), 2.0))
    assert (backend.forward_pool.stats.failed_batches, backend.forward_pool.stats.batches) == (1, 1)


async def test_nobody_is_served_outside_of_a_runtime():
    backend = ffn()
    with pytest.raises(NodeClosed, match="no Runtime serves"):
        await backend.forward_pool.submit(torch.randn(1, 8))
    async with Runtime({"ffn.0": backend}):
        pass
    with pytest.raises(NodeClosed):
        await backend.forward_pool.submit(torch.randn(1, 8))


async def test_many_callers_get_their_own_rows():
    backend = ffn(max_batch_size=16)
    local = copy.deepcopy(backend.module)
    answers = {}

    async def caller(i: int) -> None:
        x = torch.randn(1 + i % 20, 8)
        answers[i] = (x, *await backend.forward_pool.submit(x))

    async with Runtime({"ffn.0": backend}), trio.open_nursery() as nursery:
        for i in range(100):
            nursery.start_soon(caller, i)
    assert len(answers) == 100
    for x, y in answers.values():
        torch.testing.assert_close(y, local(x))
