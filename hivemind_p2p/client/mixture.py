"""One batch of a mixture: which expert gets which rows, what to do when some fail, and the way back.

A *pair* is a sample and an expert that answered for it. Pairs are kept in the order of their experts, so that the rows
of one expert are one slice: at most one call per expert and direction, and its gradients are sent without copying.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from hivemind_p2p.client.attempts import Caller
from hivemind_p2p.client.batch import Call, Outcome, Patience, call_experts
from hivemind_p2p.client.beam_search import Choice, ExpertInfo
from hivemind_p2p.client.calls import Direction
from hivemind_p2p.client.compression import Compression
from hivemind_p2p.client.grid_search import GridSearch
from hivemind_p2p.client.report import AttemptReport, BatchReport, CallReport, MixtureReport
from hivemind_p2p.client.schema import ExpertSchema
from hivemind_p2p.errors import AnomalyDetected, CodecError, NotEnoughExperts, ProtocolViolation, SchemaMismatch
from hivemind_p2p.sync import portal

logger = logging.getLogger(__name__)
ATTEMPTS: Final = 3
"""How often experts are chosen for samples whose experts failed, the first time included."""


@dataclass(frozen=True)
class MixtureOptions:
    """What a mixture was told; see ``RemoteMixtureOfExperts``."""

    k_best: int
    k_min: int
    backward_k_min: int
    forward_timeout: float | None
    backward_timeout: float | None
    timeout_after_k_min: float | None
    detect_anomalies: bool
    allow_zero_outputs: bool
    compression: Compression


@dataclass
class _Answered:
    """An expert that answered, and for which samples, in the order of the answers."""

    rows: list[torch.Tensor]
    coordinates: torch.Tensor
    outputs: list[Sequence[torch.Tensor]]


class MixtureExchange:
    """The exchange of one batch with the experts of a grid; see :class:`~hivemind_p2p.client.autograd.Exchange`.

    Args:
        scores: one float tensor ``[samples, length]`` per axis of the grid, on the CPU.
        on_not_enough: called before ``NotEnoughExperts`` is raised in the forward pass, and when nobody keeps to the
            schema.

    Attributes (after ``forward``):
        samples: int64 ``[pairs]``, the sample of each pair.
        coordinates: int64 ``[pairs, axes]``, where the expert of each pair is in the grid.
        report: what happened, the backward pass included once it is done.
    """

    samples: torch.Tensor
    coordinates: torch.Tensor
    report: MixtureReport

    def __init__(
        self,
        grid: GridSearch,
        schema: ExpertSchema,
        scores: Sequence[torch.Tensor],
        options: MixtureOptions,
        on_not_enough: Callable[[], None],
    ) -> None:
        self._on_not_enough = on_not_enough
        self._grid, self._schema, self._scores, self._options = grid, schema, scores, options
        self._experts: list[tuple[ExpertInfo, torch.Tensor]] = []  # those that answered, and the samples of each

    def forward(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Choose experts and ask them. Samples that lose too many are given others, as long as time is left.

        Returns:
            The outputs ``[pairs, ...]``.

        Raises:
            NotEnoughExperts: some samples have fewer than ``k_min`` answers; not with ``allow_zero_outputs``.
            AnomalyDetected: NaN or infinity in the inputs.
        """
        options = self._options
        began = time.perf_counter()
        self._check_finite(inputs, "input")
        self._search_seconds = 0.0
        count = len(inputs[0])
        with torch.inference_mode(mode=False):  # it is counted on in the portal's thread, where no such mode is
            answers = torch.zeros(count, dtype=torch.int64, device="cpu")
        answered: dict[ExpertInfo, _Answered] = {}
        reports: list[CallReport] = []
        misfit = False
        timeout = options.forward_timeout
        for attempt in range(ATTEMPTS):
            rows = torch.arange(count, device="cpu") if attempt == 0 else (answers < options.k_min).nonzero().flatten()
            choice = self._choose(rows, k_min=options.k_min if attempt == 0 else 0)
            calls, coordinates = self._calls(choice, rows, inputs, answered)
            if not calls:
                break
            stuck_after = math.inf
            if attempt + 1 < ATTEMPTS:
                stuck_after = max(self._grid.contacts.latencies.stuck_after(call.expert.uid) for call in calls)
            patience = Patience(options.k_min, timeout, options.timeout_after_k_min, stuck_after)
            outcomes = self._call("forward", calls, patience, answers)
            reports += [outcome.report for outcome in outcomes]
            for call, place, outcome in zip(calls, coordinates, outcomes, strict=True):
                misfit |= isinstance(outcome.error, SchemaMismatch | ProtocolViolation | CodecError)
                if outcome.tensors is not None:
                    its = answered.setdefault(outcome.by, _Answered([], place, []))
                    its.rows.append(call.rows)
                    its.outputs.append(outcome.tensors)
            if bool((answers >= options.k_min).all()):
                break
            if options.forward_timeout is not None:
                timeout = options.forward_timeout - (time.perf_counter() - began)
                if timeout <= 0:
                    break
        unanswered = int((answers < options.k_min).sum())
        batch = BatchReport(count, tuple(reports), unanswered, time.perf_counter() - began)
        self.report = MixtureReport(batch, None, self._search_seconds)
        if (lost := unanswered and not options.allow_zero_outputs) or (misfit and not answered):
            self._on_not_enough()
        if lost:
            raise NotEnoughExperts(self._why_not_enough(batch))
        return self._gather(answered)

    def pairs(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """``samples`` and ``coordinates`` on a device."""
        return self.samples.to(device), self.coordinates.to(device)

    def backward(
        self, inputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], needed: Sequence[bool]
    ) -> Sequence[torch.Tensor | None]:
        """Send each expert its slice of the gradients. The outputs of experts that fail now are taken for constants:
        they add nothing to the gradients of the inputs.

        Raises:
            NotEnoughExperts: fewer than ``backward_k_min`` experts answered.
            AnomalyDetected: NaN or infinity in the gradients.
        """
        options = self._options
        began = time.perf_counter()
        self._check_finite(grads, "gradient of output")
        calls, end = [], 0
        for expert, rows in self._experts:
            start, end = end, end + len(rows)
            calls.append(Call(expert, rows, inputs, [grad[start:end] for grad in grads]))
        patience = Patience(options.backward_k_min, options.backward_timeout, options.timeout_after_k_min)
        answers = torch.zeros(len(inputs[0]), dtype=torch.int64, device="cpu")
        outcomes = self._call("backward", calls, patience, answers) if calls else []
        found: list[torch.Tensor | None] = [
            torch.zeros_like(tensor) if wanted else None for tensor, wanted in zip(inputs, needed, strict=True)
        ]
        for call, outcome in zip(calls, outcomes, strict=True):
            if outcome.tensors is not None:
                for total, grad in zip(found, outcome.tensors, strict=True):
                    if total is not None:
                        total.index_add_(0, call.rows, grad)
        wanted = torch.zeros_like(answers).index_add_(0, self.samples, torch.ones_like(self.samples))
        unanswered = int((answers < wanted.clamp(max=options.backward_k_min)).sum())
        batch = BatchReport(
            len(answers), tuple(outcome.report for outcome in outcomes), unanswered, time.perf_counter() - began
        )
        self.report = MixtureReport(self.report.forward, batch, self.report.search_seconds)
        responded = sum(outcome.tensors is not None for outcome in outcomes)
        if responded < min(options.backward_k_min, len(calls)):
            raise NotEnoughExperts(
                f"backward pass: {responded} of {len(calls)} experts answered, and backward_k_min is "
                f"{options.backward_k_min}: {_failures(batch)}"
            )
        return found

    def _choose(self, rows: torch.Tensor, *, k_min: int) -> Choice:
        began = time.perf_counter()
        scores = self._scores if len(rows) == len(self._scores[0]) else [axis[rows] for axis in self._scores]
        choice = self._grid.search(scores, self._options.k_best, k_min=k_min)
        self._search_seconds += time.perf_counter() - began
        return choice

    def _calls(
        self,
        choice: Choice,
        rows: torch.Tensor,
        inputs: Sequence[torch.Tensor],
        answered: dict[ExpertInfo, _Answered],
    ) -> tuple[list[Call], list[torch.Tensor]]:
        """One call for each chosen expert, of the rows that chose it and do not have its answer; its coordinates."""
        chosen = choice.index >= 0
        experts, order = choice.index[chosen].sort(stable=True)
        counts = experts.bincount(minlength=len(choice.experts)).tolist()
        its_rows = rows[chosen.nonzero()[:, 0][order]].split_with_sizes(counts)
        calls, coordinates = [], []
        for expert, place, mine in zip(choice.experts, choice.coordinates, its_rows, strict=True):
            for replica, its in answered.items():
                if replica.uid == expert.uid:
                    mine = mine[torch.isin(mine, torch.cat(its.rows), invert=True)]
            if len(mine):
                calls.append(Call(expert, mine, inputs))
                coordinates.append(place)
        return calls, coordinates

    def _call(
        self, direction: Direction, calls: Sequence[Call], patience: Patience, answers: torch.Tensor
    ) -> list[Outcome]:
        grid = self._grid
        caller = Caller(
            grid.dht.node, grid.contacts, self._schema,
            detect_anomalies=self._options.detect_anomalies, compression=self._options.compression,
        )  # fmt: skip

        async def ask(
            expert: ExpertInfo, tensors: Sequence[torch.Tensor], timeout: float | None, attempts: list[AttemptReport]
        ) -> tuple[ExpertInfo, Sequence[torch.Tensor]]:
            return await caller.call(expert, direction, tensors, timeout, attempts)

        outcomes = portal().call(call_experts, ask, calls, patience, answers)
        for call, outcome in zip(calls, outcomes, strict=True):
            if outcome.tensors is None:
                grid.doubt(call.expert)
                logger.info("%s: %s", direction, outcome.report)
            if outcome.report.outcome == "late":
                grid.contacts.failures.add(call.expert, lasted=outcome.report.seconds)
        return outcomes

    def _gather(self, answered: dict[ExpertInfo, _Answered]) -> list[torch.Tensor]:
        """Put the answers one behind the other, and note which pair each row is."""
        self._experts = [(expert, torch.cat(its.rows)) for expert, its in answered.items()]
        axes = len(self._scores)
        if not answered:
            self.samples = torch.zeros(0, dtype=torch.int64, device="cpu")
            self.coordinates = torch.zeros(0, axes, dtype=torch.int64, device="cpu")
            return list(self._schema.empty_outputs())
        self.samples = torch.cat([rows for _, rows in self._experts])
        counts = torch.tensor([len(rows) for _, rows in self._experts], device="cpu")
        self.coordinates = torch.stack([its.coordinates for its in answered.values()]).repeat_interleave(counts, dim=0)
        answers = [outputs for its in answered.values() for outputs in its.outputs]
        return [same[0] if len(same) == 1 else torch.cat(same) for same in zip(*answers, strict=True)]

    def _check_finite(self, tensors: Sequence[torch.Tensor], what: str) -> None:
        if self._options.detect_anomalies:
            for number, tensor in enumerate(tensors):
                if not bool(tensor.isfinite().all()):
                    raise AnomalyDetected(f"{what} {number} of the mixture has NaN or infinity in it; nothing was sent")

    def _why_not_enough(self, batch: BatchReport) -> str:
        grid = self._grid
        k_min = self._options.k_min
        problem = f"{batch.unanswered} of {batch.samples} samples have fewer than k_min = {k_min} answers of experts"
        if not all(bool(axis.isfinite().any()) for axis in self._scores):
            return f"{problem}: the gate's scores are NaN; look at its weights and inputs"
        if not batch.calls:
            return (
                f"{problem}: none is alive under {grid.uid_prefix!r} in a grid of {grid.grid_size}. Check the prefix "
                "and the grid size, that servers have declared such experts, and that they are in the same swarm"
            )
        if not batch.uids("failed") and not batch.uids("late"):
            return f"{problem}: only {len(batch.calls)} experts are alive under {grid.uid_prefix!r}; start more servers"
        return f"{problem}: {_failures(batch)}"


def _failures(batch: BatchReport, most: int = 4) -> str:
    failures = [str(call) for call in batch.calls if call.outcome != "answered"]
    more = f"; and {len(failures) - most} more" if len(failures) > most else ""
    return "; ".join(failures[:most]) + more
