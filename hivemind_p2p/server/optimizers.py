"""torch's Adam and SGD, without loading torch's compiler.

What torch.optim.Optimizer does is wrapped so that ``torch.compile`` keeps out of it, and the first call of a wrapper
imports that compiler, ``torch._dynamo``: 2.5 seconds and 77 MiB in each server, for something that nobody uses. Here
are the same methods, found below their wrappers by the attribute that Python's ``functools.wraps`` leaves there. Where
torch does not wrap them, that is the method itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch


class _Eager(torch.optim.Optimizer):
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class Adam(_Eager, torch.optim.Adam):
    """``torch.optim.Adam``; not to be compiled, nor differentiated through."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """See there."""
        return _ADAM_STEP(self, closure)


class SGD(_Eager, torch.optim.SGD):
    """``torch.optim.SGD``; not to be compiled, nor differentiated through."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """See there."""
        return _SGD_STEP(self, closure)


def fused_adam(parameters: Iterable[torch.nn.Parameter], lr: float) -> Adam:
    """Adam in one pass over the weights, where torch has that: on a CPU five times as fast as torch's default. Its
    results are the default's but for the last bit or two.
    """
    weights = list(parameters)
    return Adam(weights, lr=lr, fused=all(weight.is_floating_point() for weight in weights) or None)


_ADAM_STEP = inspect.unwrap(torch.optim.Adam.step)
_SGD_STEP = inspect.unwrap(torch.optim.SGD.step)
