"""Steps: scheduled, clipped, accumulated; and numbers that are not finite, which never reach the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hivemind_p2p.errors import AnomalyDetected
from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend
from hivemind_p2p.runtime.finite import all_finite
from tests.runtime.modules import backend_of, ffn_backend, same, weights_of


def test_scheduler_steps_with_the_optimizer():
    module = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    backend = backend_of(module, optimizer=optimizer, scheduler=scheduler)
    rates = []
    for _ in range(3):
        before = module.bias.detach().clone()
        backend.backward(torch.zeros(1, 2), torch.ones(1, 2))
        rates.append((before - module.bias)[0].item())
    assert rates == [1.0, 0.5, 0.25]


def test_gradients_are_clipped_by_their_common_norm():
    module = nn.Linear(2, 2)
    backend = backend_of(module, optimizer=torch.optim.SGD(module.parameters(), lr=1.0), clip_grad_norm=0.5)
    before = weights_of(module)
    backend.backward(torch.full((3, 2), 100.0), torch.ones(3, 2))
    step = torch.cat([(b - w).flatten() for b, w in zip(before, module.parameters(), strict=True)])
    assert step.norm().item() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_that_are_not_finite_never_come_near_the_weights(poison, sparse):
    module = nn.Embedding(4, 2, sparse=sparse)
    backend = ExpertBackend(
        "e.0",
        module,
        args_schema=[BatchTensorDescriptor(dtype=torch.int64)],
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
    )
    before = weights_of(module)
    with pytest.raises(AnomalyDetected, match=r"weights of expert e\.0 are not finite"):
        backend.backward(torch.tensor([1]), torch.full((1, 2), poison))
    assert same(module.parameters(), before)
    assert module.weight.grad is None
    assert backend.update_count == 0
    backend.backward(torch.tensor([1]), torch.ones(1, 2))
    assert torch.equal(module.weight[1], before[0][1] - 0.1)
    assert backend.update_count == 1


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_that_explodes_is_undone(optimizer_class, caplog):
    backend = ffn_backend()
    optimizer = optimizer_class(backend.module.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    backend = backend_of(backend.module, "ffn.0", 8, optimizer=optimizer, scheduler=scheduler)
    backend.backward(torch.ones(2, 8), torch.randn(2, 8))
    before, [group] = weights_of(backend.module), optimizer.param_groups
    group["lr"] = float("inf")
    backend.backward(torch.ones(2, 8), torch.randn(2, 8))
    assert same(backend.module.parameters(), before)
    assert (backend.update_count, backend.skipped_updates, scheduler.last_epoch) == (1, 1, 1)
    assert "of expert ffn.0 NaN or infinite was undone" in caplog.text
    group["lr"] = 0.1
    backend.backward(torch.ones(2, 8), torch.randn(2, 8))
    assert backend.update_count == 2
    assert not same(backend.module.parameters(), before)


class Forgetful(torch.optim.SGD):
    """Poisons what it remembers, and the weights with it."""

    poison = False

    def step(self):
        for weight in self.param_groups[0]["params"]:
            self.state[weight]["memory"] = torch.full_like(weight, float("nan") if self.poison else 1.0)
            weight.data += self.state[weight]["memory"]


def test_an_optimizer_forgets_what_is_not_finite():
    module = nn.Linear(2, 2)
    optimizer = Forgetful(module.parameters())
    backend, before = backend_of(module, optimizer=optimizer), weights_of(module)
    optimizer.poison = True
    backend.backward(torch.ones(1, 2), torch.ones(1, 2))
    assert same(module.parameters(), before)
    assert not optimizer.state
    kept = backend_of(module, optimizer=optimizer, undo_exploded_steps=False)
    kept.backward(torch.ones(1, 2), torch.ones(1, 2))
    assert module.weight.isnan().all()
    assert kept.skipped_updates == 1
    with pytest.raises(AnomalyDetected, match=r"output 0 of expert test\.0 would have NaN"):
        kept.forward(torch.ones(1, 2))


def test_accumulated_gradients_make_one_step():
    thrice, once = ffn_backend(gradient_accumulation_steps=3), ffn_backend()
    once.module.load_state_dict(thrice.module.state_dict())
    x, grad, before = torch.randn(6, 8), torch.randn(6, 8), weights_of(thrice.module)
    once.backward(x, grad)
    for part in (slice(0, 1), slice(1, 3)):
        thrice.backward(x[part], grad[part])
        assert same(thrice.module.parameters(), before)
    with pytest.raises(AnomalyDetected):
        thrice.backward(x, torch.full((6, 8), float("nan")))
    assert thrice.update_count == 0
    thrice.backward(x[3:], grad[3:])
    for ours, theirs in zip(thrice.module.parameters(), once.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (thrice.update_count, thrice.examples_processed) == (1, 6)


def test_half_precision_gradients_whose_norm_a_half_cannot_hold_are_finite():
    module = nn.Linear(2, 2, dtype=torch.float16)
    backend = ExpertBackend(
        "half.0", module, args_schema=[BatchTensorDescriptor(2, dtype=torch.float16)],
        optimizer=torch.optim.SGD(module.parameters(), lr=1e-9),
    )  # fmt: skip
    backend.backward(torch.full((1, 2), 6e4, dtype=torch.float16), torch.ones(1, 2, dtype=torch.float16))
    assert backend.update_count == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_finite_means_finite(dtype):
    largest = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite([largest, torch.zeros(0, 4), torch.ones(2, dtype=torch.int64)]), "also where the sum is not"
    for poison in (float("nan"), float("inf"), float("-inf")):
        bad = torch.zeros(3, 4, dtype=dtype)
        bad[2, 1] = poison
        assert not all_finite([torch.ones(2), bad])
    both = torch.tensor([float("inf"), float("-inf")], dtype=dtype)
    assert not all_finite([both])


def test_gradients_that_a_module_brings_along_are_not_learned():
    module = nn.Linear(2, 2)
    fresh = copy.deepcopy(module)
    module(torch.ones(3, 2)).sum().backward()  # as the last round of a training loop leaves them
    for each in (module, fresh):
        expert = backend_of(each, optimizer=torch.optim.SGD(each.parameters(), lr=1.0))
        expert.backward(torch.ones(1, 2), torch.ones(1, 2))
    assert same(module.parameters(), fresh.parameters())


def test_without_an_optimizer_there_is_no_progress_to_save():
    backend = backend_of(nn.Linear(2, 2))
    before = backend.training.progress
    backend.backward(torch.ones(1, 2), torch.ones(1, 2))
    assert backend.training.progress == before


def test_accumulated_gradients_move_with_their_weights():
    backend = ffn_backend(gradient_accumulation_steps=2)
    backend.backward(torch.ones(1, 8), torch.ones(1, 8))
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # as on the way to a GPU
    try:
        backend.to(torch.device("meta"))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    waiting = backend.training.accumulated
    assert waiting.batches == 1
    assert {gradient.device.type for gradient in waiting.gradients.values()} == {"meta"}
