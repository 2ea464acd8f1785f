"""An expert against the same module run locally: outputs, gradients, steps, and what a module may do wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hivemind_p2p.errors import ConfigError, ExpertFailed
from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend, ExpertState
from hivemind_p2p.runtime.pool import Abandoned
from tests.runtime.modules import Lambda, backend_of, ffn, ffn_backend, same, weights_of


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
def test_learns_as_the_local_module_does(optimizer_class):
    local = ffn()
    module = copy.deepcopy(local)
    ours = optimizer_class(module.parameters(), lr=0.01)
    theirs = optimizer_class(local.parameters(), lr=0.01)
    backend = ExpertBackend("ffn.0", module, args_schema=[BatchTensorDescriptor(8)], optimizer=ours)
    for rows in (1, 5, 3):
        x, grad = torch.randn(rows, 8, requires_grad=True), torch.randn(rows, 8)
        expected = local(x)
        assert torch.equal(backend.forward(x.detach())[0], expected)
        expected.backward(grad)
        assert torch.equal(backend.backward(x.detach(), grad)[0], x.grad)
        theirs.step()
        theirs.zero_grad()
        assert same(module.parameters(), local.parameters())
    assert (backend.update_count, backend.examples_processed, backend.skipped_updates) == (3, 9, 0)


class Nested(nn.Module):
    """Several inputs, by position and keyword, and outputs inside each other; one of each is made of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.embedding = nn.Embedding(10, 2)

    def forward(self, x, tokens, *, unused, scale):
        y = self.linear(x) * scale
        return {"y": y, "more": (y.argmax(dim=1), [self.embedding(tokens) + y])}


def test_keywords_integers_and_nested_outputs():
    module = Nested()
    local = copy.deepcopy(module)
    backend = ExpertBackend(
        "nested.0",
        module,
        args_schema=[BatchTensorDescriptor(4), BatchTensorDescriptor(dtype=torch.int64)],
        kwargs_schema={"unused": BatchTensorDescriptor(3), "scale": BatchTensorDescriptor(2)},
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
    )
    x, scale = torch.randn(5, 4, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    tokens, unused = torch.randint(0, 10, (5,)), torch.randn(5, 3)
    inputs = (x.detach(), tokens, scale.detach(), unused)  # keywords are sorted
    expected = local(x, tokens, unused=unused, scale=scale)
    index, (mixed,) = expected["more"]

    assert same(backend.forward(*inputs), (index, mixed, expected["y"]))  # keys are sorted: more, y
    grads = (torch.zeros(5, dtype=torch.int64), torch.randn(5, 2), torch.randn(5, 2))
    torch.autograd.backward([mixed, expected["y"]], grads[1:])
    assert same(backend.backward(*inputs, *grads), (x.grad, torch.zeros(5).long(), scale.grad, torch.zeros(5, 3)))
    assert backend.backward_pool.inputs.names == (
        "input 0", "input 1", "input scale", "input unused",
        "the gradient of output 0", "the gradient of output 1", "the gradient of output 2",
    )  # fmt: skip


def test_a_large_request_in_pieces_is_as_one_call():
    backend, whole = ffn_backend(max_batch_size=4), ffn_backend()
    whole.module.load_state_dict(backend.module.state_dict())
    rows_of_calls = []
    backend.module.register_forward_pre_hook(lambda _, args: rows_of_calls.append(len(args[0])))
    x, grad = torch.randn(13, 8), torch.randn(13, 8)
    torch.testing.assert_close(backend.forward(x), whole.forward(x))
    assert rows_of_calls == [4, 3, 3, 3]
    torch.testing.assert_close(backend.backward(x, grad), whole.backward(x, grad))
    for piecewise, at_once in zip(backend.module.parameters(), whole.module.parameters(), strict=True):
        torch.testing.assert_close(piecewise, at_once)
    assert (backend.update_count, backend.examples_processed) == (1, 13)


def test_a_large_request_that_nobody_wants_any_more_is_given_up_without_a_trace():
    backend = ffn_backend(max_batch_size=4)
    before = weights_of(backend.module)
    answers = iter([True, True, False])
    with pytest.raises(Abandoned):
        backend.gradients(torch.randn(12, 8), torch.randn(12, 8), still_wanted=lambda: next(answers))
    assert same(backend.module.parameters(), before)
    assert all(weight.grad is None for weight in backend.module.parameters())
    assert backend.update_count == 0


def test_without_an_optimizer_only_the_inputs_get_gradients():
    backend = backend_of(nn.Linear(2, 2))
    before = weights_of(backend.module)
    (input_grads,) = backend.backward(torch.randn(3, 2), torch.ones(3, 2))
    assert torch.equal(input_grads, torch.ones(3, 2) @ before[0])
    assert same(backend.module.parameters(), before)
    assert all(weight.grad is None for weight in backend.module.parameters())
    tokens = ExpertBackend("e.0", nn.Embedding(4, 2), args_schema=[BatchTensorDescriptor(dtype=torch.int64)])
    assert same(tokens.backward(torch.tensor([1, 2]), torch.ones(2, 2)), [torch.zeros(2, dtype=torch.int64)])


def test_a_failed_backward_leaves_no_gradient_for_the_next():
    def fails_on_negative(x):
        if (x < 0).any():
            raise ValueError("negative")
        return module_weight * x

    module = Lambda(fails_on_negative)
    module_weight = module.weight = nn.Parameter(torch.ones(2))
    backend = backend_of(module, optimizer=torch.optim.SGD(module.parameters(), lr=1.0), max_batch_size=1)
    with pytest.raises(ValueError, match="negative"):
        backend.backward(torch.tensor([[5.0, 5.0], [-1.0, 1.0]]), torch.ones(2, 2))
    backend.backward(torch.tensor([[2.0, 3.0]]), torch.ones(1, 2))
    assert torch.equal(module.weight, torch.tensor([-1.0, -2.0]))


def test_no_rows_no_work():
    backend = ffn_backend()
    before = weights_of(backend.module)
    assert [tensor.shape for tensor in backend.forward(torch.zeros(0, 8))] == [(0, 8)]
    assert [tensor.shape for tensor in backend.backward(torch.zeros(0, 8), torch.zeros(0, 8))] == [(0, 8)]
    assert backend.update_count == 0
    assert same(backend.module.parameters(), before)


def test_results_are_the_callers_own_memory():
    table = torch.arange(8.0).reshape(4, 2)
    gives = {
        "a new tensor": lambda x: x + 1,
        "a part of a new tensor": lambda x: torch.cat([x - 1, x + 1])[len(x) :],
        "its input": lambda x: x,
        "a view of its input": lambda x: x.view(-1, 2),
        "a part of what it keeps": lambda x: table[: len(x)],
        "one row for all": lambda x: (x[:1] + 1).expand(len(x), 2),
        "a transposed tensor": lambda x: (x + 1).reshape(2, -1).t(),
    }
    for what, function in gives.items():
        x = torch.ones(4, 2)
        (output,) = backend_of(Lambda(function)).forward(x)
        assert torch.equal(output, function(x)), what
        assert output.is_contiguous(), what
        output.add_(1)  # would also fail on a tensor of inference_mode
        assert torch.equal(x, torch.ones(4, 2)), what
        assert torch.equal(table, torch.arange(8.0).reshape(4, 2)), what
        assert not output.requires_grad
        (output * torch.ones(2, requires_grad=True)).sum().backward()  # and so would this
    one, other = backend_of(Lambda(lambda x: [(x := x + 1), x])).forward(torch.ones(4, 2))
    one.add_(1)
    assert torch.equal(other, torch.full((4, 2), 2.0))
    with torch.inference_mode():
        x = torch.ones(4, 2)
    backend_of(nn.Identity()).forward(x)[0].add_(1)
    assert torch.equal(x, torch.ones(4, 2))
    grad = torch.ones(4, 2)
    (input_grad,) = backend_of(Lambda(lambda x: x.clone())).backward(torch.ones(4, 2), grad)
    input_grad.add_(1)
    assert torch.equal(grad, torch.ones(4, 2))


def test_forward_runs_in_inference_mode_and_in_the_mode_of_the_module():
    modes = []
    module = Lambda(lambda x: (modes.append(torch.is_inference_mode_enabled()), x * 2)[1])
    backend = backend_of(module.eval())
    backend.forward(torch.ones(1, 2))
    backend.backward(torch.ones(1, 2), torch.ones(1, 2))
    assert modes == [False, True, False]  # first, the schema
    assert not module.training


class RemembersMask(nn.Module):
    """Makes a mask at its first call, and keeps it, as modules with tables of positions do."""

    mask = None

    def forward(self, x):
        if self.mask is None:
            self.mask = torch.ones(x.shape[1]).cumsum(0)
        return (x * self.mask) ** 2


def test_what_a_module_keeps_from_its_first_call_is_fit_for_a_backward():
    backend = backend_of(RemembersMask())
    backend.forward(torch.ones(1, 2))
    assert same(backend.backward(torch.ones(1, 2), torch.ones(1, 2)), [torch.tensor([[2.0, 8.0]])])


def test_what_a_module_keeps_from_any_forward_is_fit_for_a_backward_and_for_a_restored_state():
    told = backend_of(RemembersMask(), outputs_schema=BatchTensorDescriptor(2))  # so nobody asks it
    told.forward(torch.ones(1, 2))
    assert same(told.backward(torch.ones(1, 2), torch.ones(1, 2)), [torch.tensor([[2.0, 8.0]])])
    module = RunningMean()
    backend = backend_of(module, optimizer=torch.optim.SGD(module.parameters(), lr=0.1))
    for _ in range(2):
        backend.forward(torch.ones(1, 2))
        backend.backward(torch.ones(1, 2), torch.ones(1, 2))
    assert backend.update_count == 2
    backend.forward(torch.zeros(1, 2))
    state = ExpertState.of(backend)
    backend.forward(torch.zeros(1, 2))
    state.restore(backend)
    assert torch.equal(module.mean, torch.full((2,), 0.5))


def test_asking_for_the_outputs_leaves_buffers_as_they_were():
    module = nn.BatchNorm1d(2)
    backend_of(module)
    assert torch.equal(module.running_var, torch.ones(2))
    assert module.num_batches_tracked == 0
    module = RunningMean()
    buffer = module.mean
    backend_of(module)
    assert module.mean is buffer
    assert torch.equal(buffer, torch.ones(2))


class RunningMean(nn.Module):
    """Puts a new buffer in the place of the old one."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("mean", torch.ones(2))

    def forward(self, x):
        outputs = self.linear(x) * self.mean
        self.mean = (self.mean + x.detach().mean(0)) / 2
        return outputs


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x if len(x) == 3 else x[:1], r"output 0 of expert test.0 should have 2 rows, .*: \(1, 2\)"),
        (lambda x: x if len(x) == 3 else (x, x), "gave 2 outputs, but promises 1"),
        (lambda x: x if len(x) == 3 else None, "output 0 .*: NoneType"),
        (lambda x: x if len(x) == 3 else x.sum(), r"output 0 .*: \(\)"),
        (lambda x: x if len(x) == 3 else x[:, :1], r"output 0 .* promises: expected shape \(any, 2\), got \(2, 1\)"),
        (lambda x: x if len(x) == 3 else x.double(), r"output 0 .* expected dtype torch\.float32, got torch\.float64"),
    ],
)
def test_a_module_that_breaks_its_promise(function, why):
    backend = backend_of(Lambda(function))
    with pytest.raises(ExpertFailed, match=why):
        backend.forward(torch.ones(2, 2))
    with pytest.raises(ExpertFailed, match=why):
        backend.backward(torch.ones(2, 2), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: ExpertBackend("x.0", nn.Identity()), "takes no inputs"),
        (lambda: backend_of(nn.Identity(), clip_grad_norm=1.0), "no optimizer"),
        (lambda: backend_of(nn.Identity(), gradient_accumulation_steps=0), "must be at least 1"),
        (lambda: backend_of(nn.Identity(), min_batch_size=5, max_batch_size=4), "min_batch_size"),
        (lambda: backend_of(Lambda(lambda x: x.mean())), "must give tensors with as many rows"),
        (lambda: backend_of(Lambda(lambda x: x[:1])), "must give tensors with as many rows"),
        (lambda: backend_of(Lambda(lambda x: [x, None])), "it gave NoneType"),
    ],
)
def test_experts_that_cannot_be(make, why):
    with pytest.raises(ConfigError, match=why):
        make()


def test_a_device_to_which_parameters_cannot_move():
    backend = ffn_backend()
    with pytest.raises(ConfigError, match=r"ffn.0 has other parameters on meta than its optimizer learns"):
        backend.to(torch.device("meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_moves_to_a_gpu_with_what_its_optimizer_remembers():
    module = ffn()
    backend = backend_of(module, dim=8, optimizer=torch.optim.Adam(module.parameters()), max_batch_size=2)
    local = copy.deepcopy(module)
    backend.backward(torch.ones(1, 8), torch.zeros(1, 8))
    backend.to(torch.device("cuda"))
    x, grad = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8)
    expected = local(x)
    expected.backward(grad)
    torch.testing.assert_close(backend.forward(x.detach())[0], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(backend.backward(x.detach(), grad)[0], x.grad, rtol=1e-3, atol=1e-3)
    moments = [state["exp_avg"] for state in backend.optimizer.state.values()]
    assert {tensor.device.type for tensor in [*module.parameters(), *moments]} == {"cuda"}
    assert backend.update_count == 2


def test_repr():
    backend = ffn_backend()
    assert repr(backend) == (
        "<ExpertBackend ffn.0: Sequential on its own device, 0 updates skipped, "
        "<Training of ffn.0: SGD, 0 updates, 0 exploded>>"
    )
