"""How an expert learns: gradients of batches are checked and gathered, then clipped, and the optimizer makes a step.

Two things never happen: that gradients which are not finite come near the weights, and that a step leaves weights
behind which are not. The first are refused before the step (:meth:`Training.gather`), the second are undone after it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from hivemind_p2p.errors import AnomalyDetected, ConfigError
from hivemind_p2p.runtime.finite import norms_finite

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accumulated:
    """Gradients of batches of which no step was made yet.

    Attributes:
        batches, rows: so many were added up.
        gradients: by the place of their weight among those of the optimizer.
    """

    batches: int = 0
    rows: int = 0
    gradients: Mapping[int, torch.Tensor] = field(default_factory=dict)


class Training:
    """Gathers the gradients of one module, and learns from them.

    Args:
        name: of the expert, for messages.
        module: whose gradients are thrown away after each batch, whoever learns them.
        optimizer: None: nothing is learned.
        scheduler: makes a step after each step of the optimizer.
        clip_grad_norm: the largest norm of all gradients together; larger ones are scaled down.
        accumulation_steps: gradients of so many batches are added up before the optimizer makes a step.
        undo_exploded: keep a copy of the weights during each step, for the case that it makes one of them NaN or
            infinite: they are then as they were, and the optimizer starts anew with those of which it remembers
            something that is not finite.

    Attributes:
        update_count: steps of the optimizer.
        examples_processed: rows of which it learned.
        exploded_steps: after which a weight was not finite.

    Raises:
        ConfigError: the arguments contradict each other.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        *,
        clip_grad_norm: float | None = None,
        accumulation_steps: int = 1,
        undo_exploded: bool = True,
    ) -> None:
        if optimizer is None and (scheduler is not None or clip_grad_norm is not None):
            raise ConfigError(
                f"expert {name} has a scheduler or clip_grad_norm, but no optimizer that they could serve"
            )
        if accumulation_steps < 1:
            raise ConfigError(f"gradient_accumulation_steps = {accumulation_steps} of expert {name} must be at least 1")
        self.name, self.module, self.optimizer, self.scheduler = name, module, optimizer, scheduler
        self.clip_grad_norm, self.accumulation_steps, self.undo_exploded = (
            clip_grad_norm,
            accumulation_steps,
            undo_exploded,
        )
        self.update_count = self.examples_processed = self.exploded_steps = 0
        self._gathered: dict[torch.Tensor, torch.Tensor] = {}
        self._batches = self._rows = 0
        for weight in [*module.parameters(), *self.weights]:
            weight.grad = None  # a training loop leaves its last ones there

    @property
    def progress(self) -> tuple[int, int, int]:
        """Numbers that change with each batch of which something was learned, and with nothing else."""
        return self.update_count, self.exploded_steps, self._batches

    @property
    def accumulated(self) -> Accumulated:
        """What waits for more batches before a step is made of it. The gradients are not a copy."""
        places = {weight: place for place, weight in enumerate(self.weights)}
        gradients = {places[weight]: gradient for weight, gradient in self._gathered.items() if weight in places}
        return Accumulated(self._batches, self._rows, gradients)

    @accumulated.setter
    def accumulated(self, state: Accumulated) -> None:
        weights = self.weights
        self._batches, self._rows = state.batches, state.rows
        self._gathered = {
            weights[place]: gradient.to(weights[place].device) for place, gradient in state.gradients.items()
        }

    @property
    def weights(self) -> list[torch.Tensor]:
        """What the optimizer changes."""
        return [] if self.optimizer is None else [w for group in self.optimizer.param_groups for w in group["params"]]

    def gather(self) -> None:
        """Take over the gradients that a backward pass has left at the weights, beside those that are here.

        Raises:
            AnomalyDetected: they are not finite, or too large to be squared. They are gone then.
        """
        new = {weight: weight.grad for weight in self.weights if weight.grad is not None}
        self.forget()
        if not norms_finite(new.values()):
            raise AnomalyDetected(
                f"the gradients of the weights of expert {self.name} are not finite for this request, and it does not "
                "learn from it; look for exploding values in what was sent"
            )
        for weight, gradient in new.items():
            gathered = self._gathered.get(weight)
            self._gathered[weight] = gradient if gathered is None else gathered + gradient

    def forget(self) -> None:
        """Throw away the gradients at the weights. Those that were gathered stay."""
        self.module.zero_grad()
        if self.optimizer is not None:
            self.optimizer.zero_grad()  # it may learn more than the module

    def step(self, rows: int) -> None:
        """A batch of so many rows has been gathered; learn, if it was the last of ``accumulation_steps``."""
        if self.optimizer is None:
            return
        self._batches += 1
        self._rows += rows
        if self._batches < self.accumulation_steps:
            return
        gathered, learned = self._gathered, self._rows
        self._gathered, self._batches, self._rows = {}, 0, 0
        for weight, gradient in gathered.items():
            weight.grad = gradient
        try:
            if self.clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.weights, self.clip_grad_norm)
            before = {weight: weight.detach().clone() for weight in gathered} if self.undo_exploded else {}
            self.optimizer.step()
            if not norms_finite(weight.detach() for weight in gathered):
                self._explode(before)
                return
            if self.scheduler is not None:
                self.scheduler.step()
            self.update_count += 1
            self.examples_processed += learned
        finally:
            self.forget()

    def _explode(self, before: dict[torch.Tensor, torch.Tensor]) -> None:
        assert self.optimizer is not None
        self.exploded_steps += 1
        if not before:
            logger.error("a step made weights of expert %s NaN or infinite: load an older state of it", self.name)
            return
        with torch.no_grad():
            for weight, value in before.items():
                weight.copy_(value)
        for weight in before:
            if not norms_finite(_floats(self.optimizer.state[weight].values())):
                del self.optimizer.state[weight]
        logger.warning(
            "a step that would have made weights of expert %s NaN or infinite was undone; is the learning rate too "
            "large?", self.name,
        )  # fmt: skip

    def __repr__(self) -> str:
        learns = type(self.optimizer).__name__ if self.optimizer is not None else "no optimizer"
        return f"<Training of {self.name}: {learns}, {self.update_count} updates, {self.exploded_steps} exploded>"


def _floats(values: Iterable[object]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]
