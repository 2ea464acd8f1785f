"""Modules for tests: one that learns, some that misbehave, and one that tests can hold."""

from __future__ import annotations

import threading

import torch
from torch import nn

from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend


def ffn(dim: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.LayerNorm(dim))


def ffn_backend(name: str = "ffn.0", *, lr: float = 0.1, **options) -> ExpertBackend:
    module = ffn()
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    return ExpertBackend(name, module, args_schema=[BatchTensorDescriptor(8)], optimizer=optimizer, **options)


def backend_of(module: nn.Module, name: str = "test.0", dim: int = 2, **options) -> ExpertBackend:
    return ExpertBackend(name, module, args_schema=[BatchTensorDescriptor(dim)], **options)


def weights_of(module: nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class Lambda(nn.Module):
    """A function as a module; ``seen`` is the batch size of each call after the first, which asks for the schema."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.calls: list[int] = []

    @property
    def seen(self) -> list[int]:
        return self.calls[1:]

    def forward(self, *args, **kwargs):
        self.calls.append(len([*args, *kwargs.values()][0]))
        return self.function(*args, **kwargs)


class Gate(Lambda):
    """Doubles its input, and while it is shut, holds the device thread. ``entered`` counts those that came in."""

    def __init__(self) -> None:
        super().__init__(lambda x: x * 2)
        self.entered = threading.Semaphore(0)
        self.may_go = threading.Semaphore(0)
        self.shut = False

    def forward(self, x):
        if self.shut:
            self.entered.release()
            assert self.may_go.acquire(timeout=30), "nobody opened the gate"
        return super().forward(x)
