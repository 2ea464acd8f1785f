"""A model of remote experts is the same model run locally: outputs, gradients and what is learned, to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import nn

from hivemind_p2p import RemoteMixtureOfExperts, get_experts
from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend
from hivemind_p2p.server.expert_classes import expert_classes

HIDDEN, STEPS = 32, 4


class MaskedDropout(nn.Module):
    """Dropout whose mask is an input, so that the backward pass drops what the forward pass dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(HIDDEN, 64), nn.Linear(64, HIDDEN)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x).relu() * mask)


class Many(nn.Module):
    """Two inputs, one of them of integers, a keyword input, and nested outputs, of which one is of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.embedding = nn.Linear(HIDDEN, HIDDEN), nn.Embedding(10, HIDDEN)

    def forward(self, x, ids, *, scale):
        hidden = self.linear(x + self.embedding(ids)) * scale
        return {"hidden": (hidden.tanh(), [hidden.sum(dim=1)]), "best": hidden.argmax(dim=1)}


def ffn(expert: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return expert(x)


def transformer(expert: nn.Module, x: torch.Tensor) -> torch.Tensor:
    sequence = x[:, None] * torch.linspace(-1, 1, 128)[:, None]
    padding = torch.arange(128) >= torch.arange(1, len(x) + 1)[:, None] * 7
    return expert(sequence, padding)[:, :7].mean(dim=1)


def dropout(expert: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return expert(x, (torch.rand(len(x), 64) < 0.5).float() * 2)


def many(expert: nn.Module, x: torch.Tensor) -> torch.Tensor:
    outputs = expert(x, torch.arange(len(x)) % 10, scale=x.sigmoid())
    hidden, [total] = outputs["hidden"]
    return hidden * total[:, None].tanh() + outputs["best"][:, None]


def floats(*size: int) -> BatchTensorDescriptor:
    return BatchTensorDescriptor(*size)


CASES: dict[str, tuple[Callable, Callable, list, dict]] = {
    "ffn": (ffn, partial(expert_classes["ffn"].module_class, HIDDEN), [floats(HIDDEN)], {}),
    "transformer": (
        transformer,
        lambda: expert_classes["transformer"].module_class(HIDDEN).eval(),  # draws nothing at random
        [floats(128, HIDDEN), BatchTensorDescriptor(128, dtype=torch.bool)],
        {},
    ),
    "dropout": (dropout, MaskedDropout, [floats(HIDDEN), floats(64)], {}),
    "many": (
        many, Many, [floats(HIDDEN), BatchTensorDescriptor(dtype=torch.int64)], {"scale": floats(HIDDEN)},
    ),
}  # fmt: skip


class Model(nn.Module):
    """Two experts, local or remote, between local layers."""

    def __init__(self, call: Callable, experts: list[nn.Module]) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, HIDDEN), nn.Linear(HIDDEN, 3)
        self._call, self._experts = call, experts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(x)
        for expert in self._experts:
            hidden = self._call(expert, hidden)
        return self.decoder(hidden)


def train(model: Model, optimizers: list[torch.optim.Optimizer]) -> Iterator[list[torch.Tensor]]:
    """Steps; after each, the outputs, the gradient of the inputs, and those of the local layers."""
    torch.manual_seed(1)
    for _ in range(STEPS):
        x, wanted = torch.randn(9, 5, requires_grad=True), torch.randn(9, 3)
        y = model(x)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (y - wanted).square().mean().backward()
        grads = [each.grad.clone() for each in (x, *model.parameters())]
        for optimizer in optimizers:
            optimizer.step()
        yield [y.detach(), *grads]


@pytest.mark.parametrize("kind", CASES)
def test_the_same_as_locally(serve, join, kind) -> None:
    call, make, args, kwargs = CASES[kind]
    local = [make() for _ in range(2)]
    remote = copy.deepcopy(local)
    learns = partial(torch.optim.Adam, lr=1e-2)
    backends = [
        ExpertBackend(
            f"{kind}.{at}", module, args_schema=args, kwargs_schema=kwargs, optimizer=learns(module.parameters()),
            clip_grad_norm=1.0,
        )
        for at, module in enumerate(remote)
    ]  # fmt: skip
    dht = join(serve(backends))
    there = Model(call, get_experts(dht, [f"{kind}.{at}" for at in range(2)]))
    here = Model(call, local)
    here.load_state_dict(there.state_dict())
    before = [parameter.detach().clone() for parameter in here.encoder.parameters()]

    class Clipped(torch.optim.Adam):
        def step(self):
            nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
            super().step()

    optimizers = [*(Clipped(module.parameters(), lr=1e-2) for module in local), learns(here.parameters())]
    remote_steps = list(train(there, [learns(there.parameters())]))
    for ours, theirs in zip(train(here, optimizers), remote_steps, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)
    for one, other in zip(local, remote, strict=True):
        for name, parameter in one.state_dict().items():
            assert torch.equal(parameter, other.state_dict()[name]), name
    assert not any(torch.equal(now, then) for now, then in zip(here.encoder.parameters(), before, strict=True))


def test_a_mixture_is_the_same_as_locally(serve, join) -> None:
    """Expert by expert, with the rows that chose it. What is added in another order may differ in the last bit, so each
    sample has one expert here."""
    local = [expert_classes["ffn"].module_class(HIDDEN) for _ in range(4)]
    remote = copy.deepcopy(local)
    backends = [
        ExpertBackend(
            f"ffn.{at}", module, args_schema=[floats(HIDDEN)], optimizer=torch.optim.SGD(module.parameters(), lr=0.1)
        )
        for at, module in enumerate(remote)
    ]
    dht = join(serve(backends))
    moe = RemoteMixtureOfExperts(in_features=HIDDEN, grid_size=(4,), dht=dht, uid_prefix="ffn.", k_best=1)
    learns = [torch.optim.SGD(module.parameters(), lr=0.1) for module in local]
    for _ in range(STEPS):
        x = torch.randn(40, HIDDEN)
        there, here = (x.clone().requires_grad_() for _ in range(2))
        chosen, out = moe.proj(x).argmax(dim=1), torch.empty(40, HIDDEN)
        for at, module in enumerate(local):
            rows = (chosen == at).nonzero().flatten()
            out = out.index_copy(0, rows, module(here[rows]))
        y = moe(there)
        assert torch.equal(y, out)
        weights = torch.randn(40, HIDDEN)
        (y * weights).sum().backward()
        (out * weights).sum().backward()
        assert torch.equal(there.grad, here.grad)
        for optimizer in learns:
            optimizer.step()
            optimizer.zero_grad()
    assert len(set(chosen.tolist())) > 1
    for one, other in zip(local, remote, strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
