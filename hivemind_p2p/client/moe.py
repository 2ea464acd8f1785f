"""``RemoteMixtureOfExperts``: a gate here, experts anywhere."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import trio
from torch import nn

from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.calls import fetch_schema
from hivemind_p2p.client.compression import Compression, CompressionOption
from hivemind_p2p.client.grid_search import GridSearch
from hivemind_p2p.client.mixture import MixtureExchange, MixtureOptions
from hivemind_p2p.client.report import MixtureReport
from hivemind_p2p.client.schema import ExpertSchema
from hivemind_p2p.client.together import Prepared
from hivemind_p2p.errors import ConfigError, HivemindError, NotEnoughExperts, SchemaMismatch
from hivemind_p2p.sync import DHT, portal


class RemoteMixtureOfExperts(nn.Module):
    """For each sample, the ``k_best`` experts that a gate chooses from a grid; the average of those that answer.

    The gate ``proj`` gives every coordinate of the grid a score; an expert's score is the sum of those of its
    coordinates. Beam search through the DHT finds the best living experts of each sample. Each expert is called at most
    once per batch and direction, with all the rows that chose it; all at the same time. The outputs are averaged with
    the softmax of the scores of those that answered. Gradients of the gate, and of the inputs through the experts that
    answered, are exact; experts that answered the forward pass and fail in the backward pass count as constants.

    Samples whose experts failed are given other ones before the batch is given up. Experts that failed are left out for
    5 s, doubling with each failure up to a minute. What happened is in :attr:`last_report`.

    Args:
        in_features: length of the last axis of the input.
        grid_size: lengths of the axes of the grid.
        dht: where the experts are declared, and through whose node they are called.
        uid_prefix: what the uids of the experts begin with: ``ffn.``; coordinates follow. All take and give the same.
        k_best: experts per sample.
        k_min: answers that each sample must have.
        forward_timeout: seconds that the experts have for the forward pass. Default: ``settings.rpc.timeout``.
        timeout_after_k_min: seconds that stragglers are given once every sample has ``k_min`` answers, in the
            forward and in the backward pass. Default: as long as the pass has.
        backward_k_min: experts that must answer the backward pass.
        backward_timeout: seconds that the experts have for the backward pass. Default: ``settings.rpc.timeout``.
        detect_anomalies: refuse inputs and gradients with NaN or infinity, and treat such answers as failures.
        allow_zero_outputs: samples with too few answers get what they have, without any: zeros.
        num_workers: taken because hivemind takes it; the DHT bounds its requests itself (``settings.dht``).
        negative_caching: remember where the grid is empty, too. Here, not in the DHT as hivemind does.
        cache_expiration: seconds for which what the DHT said about the grid is believed.
        compression: how tensors travel, one way for all or a :class:`Compression`; default: as the experts say.

    Raises:
        ConfigError, InvalidUID: the arguments do not fit together.
    """

    def __init__(
        self,
        *,
        in_features: int,
        grid_size: Sequence[int],
        dht: DHT,
        uid_prefix: str,
        k_best: int,
        k_min: int = 1,
        forward_timeout: float | None = None,
        timeout_after_k_min: float | None = None,
        backward_k_min: int = 1,
        backward_timeout: float | None = None,
        detect_anomalies: bool = False,
        allow_zero_outputs: bool = False,
        num_workers: int | None = None,
        negative_caching: bool = True,
        cache_expiration: float = 15.0,
        compression: CompressionOption = None,
    ) -> None:
        super().__init__()
        if not 0 <= k_min <= k_best or k_best < 1:
            raise ConfigError(f"k_best = {k_best} must be above 0, and k_min = {k_min} between 0 and that")
        self.dht = dht
        self.beam_search = GridSearch(
            dht, uid_prefix, grid_size, negative_caching=negative_caching, cache_expiration=cache_expiration
        )
        self.options = MixtureOptions(
            k_best=k_best,
            k_min=k_min,
            backward_k_min=backward_k_min,
            forward_timeout=forward_timeout,
            backward_timeout=backward_timeout,
            timeout_after_k_min=timeout_after_k_min,
            detect_anomalies=detect_anomalies,
            allow_zero_outputs=allow_zero_outputs,
            compression=Compression.of(compression),
        )
        self.proj = nn.Linear(in_features, self.beam_search.total_grid_size)
        self._schema: ExpertSchema | None = None
        self._schema_lock = threading.Lock()
        self._last: MixtureExchange | None = None

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: A002 (hivemind's name)
        """Choose experts for each sample, call them, and average what they answer.

        Args:
            input: ``[batch, ..., in_features]``; the gate sees its mean over the axes in between.
            args, kwargs: further inputs of the experts, ``[batch, ...]``, nested as their schema is.

        Returns:
            Tensors ``[batch, ...]``, nested as the outputs of the experts are.

        Raises:
            NotEnoughExperts: some samples have fewer than ``k_min`` answers.
            SchemaMismatch: the inputs are not what the experts take; nothing was sent.
            AnomalyDetected: NaN or infinity in the input, with ``detect_anomalies``.
        """
        return self.prepare(input, *args, **kwargs).run()

    def prepare(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> Prepared:  # noqa: A002
        """What :meth:`forward` would do, for ``call_together``."""
        scores = self._scores(self._for_gate(input))
        schema, exchange, inputs = self._exchange(scores, input, args, kwargs)

        def finish(answers: Sequence[torch.Tensor]) -> Any:
            samples, coordinates = exchange.pairs(input.device)
            return schema.pack_outputs(
                weighted_sums(answers, _weights(scores, samples, coordinates), samples, len(input))
            )

        return Prepared(exchange, inputs, finish)

    def _for_gate(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """What the gate sees of an input: float ``[batch, in_features]``."""
        if input.ndim < 2:
            raise SchemaMismatch(f"the input of a mixture is [batch, ..., features], not {tuple(input.shape)}")
        return input if input.ndim == 2 else input.mean(dim=tuple(range(1, input.ndim - 1)))

    def _scores(self, for_gate: torch.Tensor) -> Sequence[torch.Tensor]:
        """One tensor ``[batch, length]`` per axis of the grid."""
        scores: Sequence[torch.Tensor] = self.proj(for_gate).split_with_sizes(list(self.beam_search.grid_size), dim=-1)
        return scores

    def _exchange(
        self,
        scores: Sequence[torch.Tensor],
        input: torch.Tensor,  # noqa: A002
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> tuple[ExpertSchema, MixtureExchange, list[torch.Tensor]]:
        """What will call the best experts by these scores, and the flat inputs for it."""
        on_cpu = [axis.detach().cpu() for axis in scores]
        schema = self._known_schema(on_cpu)
        inputs = schema.flatten_inputs(f"an expert of {self.beam_search.uid_prefix}*", (input, *args), kwargs)
        exchange = MixtureExchange(self.beam_search, schema, on_cpu, self.options, self._forget_schema)
        self._last = exchange  # for the report alone: another thread's may take its place at once
        return schema, exchange, inputs

    def _forget_schema(self) -> None:
        """Too few answered, or nobody kept to it: in case that it was the lie of one of them, or is no longer so."""
        self._schema = None

    @property
    def info(self) -> dict[str, Any]:
        """What the experts take and give, as one of them says: ``forward_schema`` (args, kwargs), ``outputs_schema``,
        ``keyword_names``.

        Raises:
            NotEnoughExperts: none is there, or none answers.
        """
        return self._known_schema([]).info()

    @property
    def last_report(self) -> MixtureReport | None:
        """What happened to the last batch; None before the first."""
        return getattr(self._last, "report", None)

    def __getstate__(self) -> dict[str, Any]:
        """For ``copy.deepcopy``: all but the lock and the last batch."""
        return {name: value for name, value in vars(self).items() if name != "_schema_lock"} | {"_last": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._schema_lock = threading.Lock()

    def extra_repr(self) -> str:
        return f"{self.beam_search!r}, k_best={self.options.k_best}, k_min={self.options.k_min}"

    def _known_schema(self, scores: Sequence[torch.Tensor]) -> ExpertSchema:
        """The schema of all the experts; the first time, of one that these scores (or any) lead to."""
        if (schema := self._schema) is None:
            with self._schema_lock:
                if (schema := self._schema) is None:
                    if not scores or len(scores[0]) == 0:
                        scores = [torch.zeros(1, length, device="cpu") for length in self.beam_search.grid_size]
                    schema = self._schema = self._fetch_schema([axis.mean(dim=0, keepdim=True) for axis in scores])
        return schema

    def _fetch_schema(self, scores: Sequence[torch.Tensor]) -> ExpertSchema:
        grid = self.beam_search
        failures: list[str] = []
        for _ in range(2):  # a second time with experts that are not the ones that failed
            choice = grid.search(scores, max(4, self.options.k_best), k_min=1)
            schema, errors = portal().call(self._ask_for_schema, choice.experts)
            for expert, error in errors:
                grid.contacts.failures.add(expert, error)
                grid.doubt(expert)
                failures.append(f"{expert.uid} at {expert.peer_id!r}: {type(error).__name__}: {error}")
            if schema is not None:
                return schema
        raise NotEnoughExperts(
            f"no expert under {grid.uid_prefix!r} in a grid of {grid.grid_size} says what it takes: "
            + (
                "; ".join(failures[:4])
                or "none is alive. Check the prefix, the grid size, and that servers are in the swarm"
            )
        )

    async def _ask_for_schema(
        self, experts: Sequence[ExpertInfo]
    ) -> tuple[ExpertSchema | None, list[tuple[ExpertInfo, HivemindError]]]:
        """The first answer of several experts, and who failed before it."""
        found: list[ExpertSchema] = []
        errors: list[tuple[ExpertInfo, HivemindError]] = []
        rpc = self.dht.node.rpc

        async def ask(expert: ExpertInfo) -> None:
            try:
                found.append(await fetch_schema(rpc, expert, self.options.forward_timeout))
                nursery.cancel_scope.cancel()
            except HivemindError as error:
                errors.append((expert, error))

        async with trio.open_nursery() as nursery:
            for expert in experts:
                nursery.start_soon(ask, expert)
        return (found[0] if found else None), errors


def _weights(scores: Sequence[torch.Tensor], samples: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """The softmax over the experts that answered for a sample, for each pair of a sample and such an expert.

    Args:
        scores: one tensor ``[samples, length]`` per axis.
        samples: int64 ``[pairs]``.
        coordinates: int64 ``[pairs, axes]``.
    """
    logits = torch.stack([axis[samples, at] for axis, at in zip(scores, coordinates.unbind(dim=1), strict=True)]).sum(0)
    count = len(scores[0])
    highest = logits.new_full((count,), -torch.inf).scatter_reduce(0, samples, logits.detach(), "amax")
    powers = (logits - highest[samples]).exp()
    return powers / powers.new_zeros(count).index_add(0, samples, powers)[samples]


def _weighted_sum(answer: torch.Tensor, weights: torch.Tensor, samples: torch.Tensor, count: int) -> torch.Tensor:
    """``[pairs, ...]`` to ``[count, ...]``: the sum over the pairs of each sample; zeros where there is none."""
    weighted = answer * weights.to(answer.device).view(-1, *[1] * (answer.ndim - 1))
    return weighted.new_zeros(count, *answer.shape[1:]).index_add(0, samples, weighted)


def weighted_sums(
    answers: Sequence[torch.Tensor], weights: torch.Tensor, samples: torch.Tensor, count: int
) -> list[torch.Tensor]:
    """The weighted sum of its answers for each sample."""
    return [_weighted_sum(answer, weights, samples, count) for answer in answers]
