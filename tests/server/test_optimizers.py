from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from hivemind_p2p.server import optimizers


@pytest.mark.parametrize(
    ("name", "options"),
    [("Adam", {"lr": 0.1}), ("Adam", {"lr": 0.1, "weight_decay": 0.1}), ("SGD", {"lr": 0.1, "momentum": 0.9})],
)
def test_they_learn_as_torchs_own_do(name, options):
    module = nn.Linear(4, 4)
    theirs, x = copy.deepcopy(module), torch.randn(3, 4)
    ours = getattr(optimizers, name)(module.parameters(), **options)
    original = getattr(torch.optim, name)(theirs.parameters(), **options)
    assert isinstance(ours, getattr(torch.optim, name))
    scheduler = torch.optim.lr_scheduler.LambdaLR(ours, lambda step: 1.0)
    for _ in range(3):
        for each, optimizer in ((module, ours), (theirs, original)):
            each(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), theirs.parameters(), strict=True))
    assert module.weight.grad is None
    again = getattr(optimizers, name)(module.parameters(), **options)
    again.load_state_dict(original.state_dict())
    assert ours.state_dict()["param_groups"][0].items() >= original.state_dict()["param_groups"][0].items()
    for key, value in original.state_dict()["state"][0].items():
        assert torch.equal(torch.as_tensor(again.state_dict()["state"][0][key]), torch.as_tensor(value))


def test_the_fused_adam_learns_nearly_as_torchs_own_does():
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    theirs, x = copy.deepcopy(module), torch.randn(3, 4)
    fused, original = optimizers.fused_adam(module.parameters(), 0.01), torch.optim.Adam(theirs.parameters(), lr=0.01)
    assert fused.param_groups[0]["fused"] is True
    for _ in range(5):
        for each, optimizer in ((module, fused), (theirs, original)):
            optimizer.zero_grad()
            each(x).square().sum().backward()
            optimizer.step()
    for ours, other in zip(module.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)
    empty, waves = (nn.Parameter(torch.zeros(0)), nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    for weight in (empty, waves):
        optimizer = optimizers.fused_adam([weight], 0.01)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert abs(waves[0] - 1) > 0.005


def test_an_expert_that_learns_does_not_load_torchs_compiler():
    program = """
import sys, torch
from hivemind_p2p.server.recipe import ExpertRecipe, optimizer_maker, scheduler_maker
for name in ("adam", "sgd"):
    recipe = ExpertRecipe("ffn", 8, make_optimizer=optimizer_maker(name, None), clip_grad_norm=1.0,
                          make_scheduler=scheduler_maker("linear", 1, 10))
    expert = recipe.backend("ffn.0")
    expert.backward(torch.ones(1, 8), torch.ones(1, 8))
    expert.optimizer.load_state_dict(expert.optimizer.state_dict())
    expert.backward(torch.ones(1, 8), torch.ones(1, 8))
    assert expert.update_count == 2
sys.exit("torch._dynamo" in sys.modules or "sympy" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
