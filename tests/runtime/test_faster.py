"""Experts that compute in bfloat16, or compiled; and schemas made of samples."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hivemind_p2p.errors import ConfigError
from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend
from tests.runtime.modules import backend_of, ffn, same


def test_autocast_computes_in_bfloat16_and_nobody_else_sees_it():
    module = nn.Linear(8, 8)
    local, seen = copy.deepcopy(module), []
    module.register_forward_hook(lambda _, args, output: seen.append(output.dtype))
    backend = backend_of(module, dim=8, autocast=True, optimizer=torch.optim.SGD(module.parameters(), lr=0.1))
    x, grad = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    assert backend.outputs_schema.dtype is torch.float32
    seen.clear()
    (y,) = backend.forward(x.detach())
    (x_grad,) = backend.backward(x.detach(), grad)
    assert seen == [torch.bfloat16, torch.bfloat16]
    expected = local(x)
    expected.backward(grad)
    assert y.dtype is x_grad.dtype is module.weight.dtype is torch.float32
    torch.testing.assert_close(y, expected.detach(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(x_grad, x.grad, rtol=0.02, atol=0.02)
    torch.testing.assert_close(module.weight, local.weight - 0.1 * local.weight.grad, rtol=0.02, atol=0.02)
    assert not torch.equal(y, expected), "it is bfloat16 indeed"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's compiler's own
def test_a_compiled_expert_is_the_same_expert():
    module, compiled = ffn(), []

    def backend_of_dynamo(graph, inputs):
        compiled.append(graph)
        return graph.forward

    local = backend_of(copy.deepcopy(module), dim=8)
    expert = backend_of(module, dim=8, compile={"backend": backend_of_dynamo})
    for rows in (3, 5, 1):
        x, grad = torch.randn(rows, 8), torch.randn(rows, 8)
        torch.testing.assert_close(expert.forward(x), local.forward(x))
        torch.testing.assert_close(expert.backward(x, grad), local.backward(x, grad))
    assert compiled
    assert expert.module is module
    assert same(expert.module.state_dict().values(), local.module.state_dict().values()), "under their own names"


def test_a_schema_may_be_made_of_samples():
    sample = {"args_schema": [torch.zeros(5, 8)], "kwargs_schema": {"tokens": torch.zeros(5, dtype=torch.int64)}}

    class Both(nn.Module):
        def forward(self, x, *, tokens):
            return x + tokens[:, None]

    backend = ExpertBackend("both.0", Both(), **sample)
    assert backend.args_schema == (BatchTensorDescriptor(8),)
    assert backend.kwargs_schema == {"tokens": BatchTensorDescriptor(dtype=torch.int64)}
    assert torch.equal(backend.forward(torch.ones(2, 8), torch.tensor([1, 2]))[0][:, 0], torch.tensor([2.0, 3.0]))
    for wrong in (torch.tensor(1.0), 5):
        with pytest.raises(ConfigError, match="tensors with a batch"):
            ExpertBackend("both.0", Both(), args_schema=[wrong])
