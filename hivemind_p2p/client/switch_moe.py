"""``RemoteSwitchMixtureOfExperts``: a mixture whose gate is kept from sending everything to the same experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hivemind_p2p.client.moe import RemoteMixtureOfExperts, weighted_sums
from hivemind_p2p.client.together import Prepared
from hivemind_p2p.errors import ConfigError


class RemoteSwitchMixtureOfExperts(RemoteMixtureOfExperts):
    """The layer of Switch Transformers (Fedus, Zoph and Shazeer, https://arxiv.org/abs/2101.03961, section 2), over a
    grid of remote experts: ``input + sum(p(expert) * expert(input))`` over the experts that answered, where an expert's
    probability is the product of those of its coordinates. Samples without an answer keep their input.

    Differs from hivemind 1.1's, which computes the loss from the wrong elements of ``grid_utilization`` (it has no
    gradient there) and changes its input in place: here the loss is the paper's, for each axis, and the input stays.
    Jitter, dropout and the count of utilization belong to training, and rest in ``eval()`` mode.

    Args:
        grid_size: lengths of the axes of the grid.
        utilization_alpha: how much of ``grid_utilization`` stays from batch to batch.
        grid_dropout: the probability with which a coordinate of the grid is *kept*, for a whole batch.
        jitter_eps: what the gate sees is multiplied by uniform noise from ``1 - jitter_eps`` to ``1 + jitter_eps``.
        k_best, k_min, backward_k_min, allow_zero_outputs, others: see ``RemoteMixtureOfExperts``.

    Attributes:
        grid_utilization: float32 ``[sum(grid_size)]``, a buffer: the share of samples at each coordinate, axis by axis.

    Raises:
        ConfigError, InvalidUID: the arguments do not fit together.
    """

    grid_utilization: torch.Tensor

    def __init__(
        self,
        *,
        grid_size: Sequence[int],
        utilization_alpha: float = 0.9,
        grid_dropout: float = 1.0,
        jitter_eps: float = 1e-2,
        k_best: int = 1,
        k_min: int = 0,
        backward_k_min: int = 0,
        allow_zero_outputs: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            grid_size=grid_size,
            k_best=k_best,
            k_min=k_min,
            backward_k_min=backward_k_min,
            allow_zero_outputs=allow_zero_outputs,
            **kwargs,
        )
        if not 0 <= utilization_alpha <= 1 or not 0 < grid_dropout <= 1 or not 0 <= jitter_eps < 1:
            raise ConfigError(
                f"utilization_alpha = {utilization_alpha}, grid_dropout = {grid_dropout} and jitter_eps = {jitter_eps} "
                "must be shares from 0 to 1; with grid_dropout 0 no expert would be left, with jitter_eps 1 no input"
            )
        self.utilization_alpha, self.grid_dropout, self.jitter_eps = utilization_alpha, grid_dropout, jitter_eps
        even = [torch.full((length,), 1 / length) for length in self.beam_search.grid_size]
        self.register_buffer("grid_utilization", torch.cat(even))

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, torch.Tensor]:  # noqa: A002
        """Choose experts for each sample, call them, and add what they answer to the input.

        Args:
            input: ``[batch, ..., in_features]``; the gate sees its mean over the axes in between.
            args, kwargs: further inputs of the experts, ``[batch, ...]``, nested as their schema is.

        Returns:
            Tensors ``[batch, ...]``, nested as the outputs of the experts are, the first of which must be of the shape
            of the input; and the balancing loss (a scalar) to add to the loss of the model: it is least, and 1 for each
            axis of the grid, when samples and probabilities are spread evenly.

        Raises:
            NotEnoughExperts: no expert is alive that could say what experts take; or, if asked for, too few answers.
            SchemaMismatch: the inputs are not what the experts take; nothing was sent.
            AnomalyDetected: NaN or infinity in the input, with ``detect_anomalies``.
        """
        result: tuple[Any, torch.Tensor] = self.prepare(input, *args, **kwargs).run()
        return result

    def prepare(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> Prepared:  # noqa: A002
        """What :meth:`forward` would do, for ``call_together``."""
        seen = self._for_gate(input)
        if self.training and self.jitter_eps:
            seen = seen * torch.empty_like(seen).uniform_(1 - self.jitter_eps, 1 + self.jitter_eps)
        scores = [self._drop(axis) for axis in self._scores(seen)]
        schema, exchange, inputs = self._exchange(scores, input, args, kwargs)
        probabilities = [axis.softmax(dim=-1) for axis in scores]

        def finish(answers: Sequence[torch.Tensor]) -> tuple[Any, torch.Tensor]:
            samples, coordinates = exchange.pairs(input.device)
            if self.training and len(samples):
                self._count(coordinates)
            chosen = [axis[samples, at] for axis, at in zip(probabilities, coordinates.unbind(dim=1), strict=True)]
            outputs = weighted_sums(answers, torch.stack(chosen).prod(dim=0), samples, len(input))
            return schema.pack_outputs([input + outputs[0], *outputs[1:]]), self._balancing_loss(probabilities)

        return Prepared(exchange, inputs, finish)

    def _drop(self, scores: torch.Tensor) -> torch.Tensor:
        """Leave out some coordinates of an axis, but never all."""
        if not self.training or self.grid_dropout >= 1:
            return scores
        kept = torch.rand(scores.shape[-1], device=scores.device) < self.grid_dropout
        return scores.masked_fill(~kept, -torch.inf) if bool(kept.any()) else scores

    @torch.no_grad()
    def _count(self, coordinates: torch.Tensor) -> None:
        """Take note of where the answers of a batch came from."""
        shares = [
            nn.functional.normalize(at.bincount(minlength=length).float(), p=1, dim=0)
            for at, length in zip(coordinates.unbind(dim=1), self.beam_search.grid_size, strict=True)
        ]
        alpha = self.utilization_alpha
        new = alpha * self.grid_utilization + (1 - alpha) * torch.cat(shares).to(self.grid_utilization.device)
        self.grid_utilization = new  # a new tensor: the losses of earlier batches may still need theirs

    def _balancing_loss(self, probabilities: Sequence[torch.Tensor]) -> torch.Tensor:
        """The paper's equation 4 for each axis: its length times the sum of mean probability times share of samples."""
        shares = self.grid_utilization.split_with_sizes(list(self.beam_search.grid_size))
        losses = [
            len(share) * (axis.sum(dim=0) / max(1, len(axis)) * share.to(axis.device)).sum()  # no rows have no mean
            for axis, share in zip(probabilities, shares, strict=True)
        ]
        return torch.stack(losses).sum()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, grid_dropout={self.grid_dropout}, jitter_eps={self.jitter_eps}"
