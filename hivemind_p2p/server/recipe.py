"""How ``Server.create`` makes its experts: all alike, each with weights and an optimizer of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hivemind_p2p.errors import ConfigError
from hivemind_p2p.runtime import BatchTensorDescriptor, ExpertBackend
from hivemind_p2p.server.expert_classes import find_expert_class
from hivemind_p2p.server.optimizers import SGD, fused_adam
from hivemind_p2p.wire.compression_type import CompressionType
from hivemind_p2p.wire.nested import nested_map

MakeOptimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], LRScheduler]
_SAMPLE_ROWS: Final = 3
_OPTIMIZERS: Final[dict[str, tuple[Callable[..., torch.optim.Optimizer], float] | None]] = {
    "adam": (fused_adam, 1e-3),
    "sgd": (SGD, 1e-2),
    "none": None,
}
"""What makes it, and its default learning rate."""


class ExpertRecipe:
    """Makes experts of one kind.

    Args:
        expert_cls: the name of a registered class.
        hidden_dim: what its constructor is given.
        make_optimizer: see :func:`optimizer_maker`; None: the experts do not learn.
        make_scheduler: see :func:`scheduler_maker`.
        compression: of all inputs, outputs and gradients that are floats, a number of ``CompressionType``.
        options: further arguments of :class:`~hivemind_p2p.runtime.ExpertBackend`, the same for each.

    Raises:
        ConfigError: there is no such class, or it cannot be made like this.
    """

    def __init__(
        self,
        expert_cls: str,
        hidden_dim: int,
        *,
        make_optimizer: MakeOptimizer | None,
        make_scheduler: MakeScheduler | None = None,
        compression: int = 0,
        **options: Any,
    ) -> None:
        self._kind = find_expert_class(expert_cls)
        self._hidden_dim = hidden_dim
        self._make_optimizer, self._make_scheduler = make_optimizer, make_scheduler
        self._options = options
        sample = self._kind.sample(_SAMPLE_ROWS, hidden_dim)
        self._args_schema = tuple(BatchTensorDescriptor.from_tensor(tensor, compression) for tensor in sample)
        self._outputs_schema: Any = None
        self._made: torch.nn.Module | None = None
        first = self.backend(f"{expert_cls}.0")
        self._outputs_schema = nested_map(partial(_compressed, compression=compression), first.outputs_schema)
        self._made = first.module  # for the first expert: making a large one takes a while

    def backend(self, uid: str) -> ExpertBackend:
        """A new expert."""
        module = self._made if self._made is not None else self._kind.module_class(self._hidden_dim)
        self._made = None
        optimizer = None if self._make_optimizer is None else self._make_optimizer(module.parameters())
        scheduler = None if self._make_scheduler is None or optimizer is None else self._make_scheduler(optimizer)
        return ExpertBackend(
            uid,
            module,
            args_schema=self._args_schema,
            outputs_schema=self._outputs_schema,
            optimizer=optimizer,
            scheduler=scheduler,
            **self._options,
        )


def optimizer_maker(name: str, lr: float | None) -> MakeOptimizer | None:
    """What makes an optimizer of this name: ``adam``, ``sgd`` or ``none``.

    Args:
        lr: its learning rate. Default: 1e-3 for Adam, 1e-2 for SGD.

    Raises:
        ConfigError: there is no such optimizer.
    """
    if name not in _OPTIMIZERS:
        raise ConfigError(f"optimizer = {name!r} is not one of {', '.join(_OPTIMIZERS)}; others go into optim_cls")
    kind = _OPTIMIZERS[name]
    if kind is None:
        return None
    make, default = kind
    return partial(make, lr=default if lr is None else lr)


def scheduler_maker(name: str, warmup_steps: int | None, training_steps: int | None) -> MakeScheduler | None:
    """What makes a learning-rate scheduler of this name: ``none``, or ``linear``, hivemind's.

    Args:
        warmup_steps: over which the learning rate of ``linear`` rises from 0 to the optimizer's.
        training_steps: after which, in all, it has fallen to 0. Both are as ``HostingSettings`` has checked them.

    Raises:
        ConfigError: there is no such scheduler.
    """
    if name == "none":
        return None
    if name != "linear":
        raise ConfigError(f"scheduler = {name!r} is not one of none, linear")
    assert warmup_steps is not None
    assert training_steps is not None
    warmup, total = warmup_steps, training_steps

    def share(step: int) -> float:
        return step / warmup if step < warmup else max(0.0, (total - step) / (total - warmup))

    return partial(LambdaLR, lr_lambda=share)


def compression_type(name: int | str) -> int:
    """A number of ``CompressionType``, given as such or by its name: ``"FLOAT16"``.

    Raises:
        ConfigError: there is no such compression.
    """
    try:
        kind = CompressionType[name.upper()] if isinstance(name, str) else CompressionType(name)
    except (KeyError, ValueError):
        known = ", ".join(kind.name for kind in CompressionType)
        raise ConfigError(f"compression = {name!r} is not one of {known}") from None
    return int(kind)


def _compressed(like: BatchTensorDescriptor, compression: int) -> BatchTensorDescriptor:
    return BatchTensorDescriptor(
        like.size[1:],  # type: ignore[arg-type]  # only the first is None
        dtype=like.dtype,
        layout=like.layout,
        device=like.device,
        requires_grad=like.requires_grad,
        pin_memory=like.pin_memory,
        compression=compression if like.dtype.is_floating_point else 0,
    )
