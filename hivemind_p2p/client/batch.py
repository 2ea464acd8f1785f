"""All the calls of one batch in one direction, at the same time."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import trio

from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.calls import beside_the_network
from hivemind_p2p.client.quorum import Quorum
from hivemind_p2p.client.report import AttemptReport, CallReport
from hivemind_p2p.errors import HivemindError


@dataclass(frozen=True)
class Patience:
    """How long to wait for the calls of a batch.

    Attributes:
        k_min: answers that each sample should have.
        timeout: seconds for all of it; None: the RPC's own timeout.
        timeout_after_k_min: seconds more, once every sample has ``k_min``; None: until all are done.
        stuck_after: seconds after which samples without ``k_min`` are better off with other experts: then all ends.
    """

    k_min: int
    timeout: float | None = None
    timeout_after_k_min: float | None = None
    stuck_after: float = math.inf


@dataclass(frozen=True)
class Call:
    """One call to make.

    Attributes:
        rows: int64, the samples of the batch that it concerns.
        tensors: what to send, all of the batch's samples; ``rows`` are taken from it when the call is made.
        aligned: what to send beside it that has these rows only, in this order.
    """

    expert: ExpertInfo
    rows: torch.Tensor
    tensors: Sequence[torch.Tensor]
    aligned: Sequence[torch.Tensor] = ()


@dataclass(frozen=True)
class Outcome:
    """How a call ended: with tensors, with an error, or, with neither, not in time.

    Attributes:
        by: the replica that answered, or that was to be asked first.
    """

    report: CallReport
    by: ExpertInfo
    tensors: Sequence[torch.Tensor] | None = None
    error: HivemindError | None = None


Ask: TypeAlias = Callable[
    [ExpertInfo, Sequence[torch.Tensor], float | None, list[AttemptReport]],
    Awaitable[tuple[ExpertInfo, Sequence[torch.Tensor]]],
]
"""Calls an expert: with what, for how many seconds at most, and where to report attempts; who answered, and what."""


async def call_experts(ask: Ask, calls: Sequence[Call], patience: Patience, answers: torch.Tensor) -> list[Outcome]:
    """Make calls at the same time; wait for all of them, or as long as ``patience`` says.

    Args:
        answers: int64 ``[samples]``, answers that each sample has already; counted on in place.

    Returns:
        How each call ended. A call that fails does not end the others.
    """
    timeout = None if patience.timeout is None else math.inf  # what `scope` ends is late, not failed
    quorum = Quorum(answers, [call.rows for call in calls], patience.k_min)
    ends = [_End() for _ in calls]
    began = trio.current_time()

    def shorten() -> None:
        if patience.timeout_after_k_min is not None and quorum.settled:
            scope.deadline = min(scope.deadline, trio.current_time() + patience.timeout_after_k_min)

    async def make(number: int) -> None:
        call, end = calls[number], ends[number]
        try:
            size = sum(tensor[:1].nbytes for tensor in call.tensors) * len(call.rows)
            tensors = [*await beside_the_network(size, _take, call.tensors, call.rows), *call.aligned]
            end.by, end.tensors = await ask(call.expert, tensors, timeout, end.attempts)
        except HivemindError as error:
            end.error = error
        end.seconds = trio.current_time() - began
        quorum.ended(number, answered=end.error is None)
        shorten()
        if all(each.seconds is not None for each in ends):
            nursery.cancel_scope.cancel()

    async def give_up_on_those_that_are_stuck() -> None:
        await trio.sleep(patience.stuck_after)
        if not quorum.settled:
            scope.cancel()

    with trio.move_on_after(math.inf if patience.timeout is None else patience.timeout) as scope:
        shorten()
        async with trio.open_nursery() as nursery:
            for number in range(len(calls)):
                nursery.start_soon(make, number)
            if patience.stuck_after < math.inf and calls:
                nursery.start_soon(give_up_on_those_that_are_stuck)
    seconds = trio.current_time() - began
    return [end.outcome(call, seconds) for call, end in zip(calls, ends, strict=True)]


def _take(tensors: Sequence[torch.Tensor], rows: torch.Tensor) -> list[torch.Tensor]:
    """Some rows of each; without a copy if they are all, in order."""
    if torch.equal(rows, torch.arange(len(tensors[0]), device="cpu")):
        return list(tensors)
    return [tensor.index_select(0, rows) for tensor in tensors]


@dataclass
class _End:
    """How a call ended; nothing yet, while it is under way."""

    by: ExpertInfo | None = None
    tensors: Sequence[torch.Tensor] | None = None
    error: HivemindError | None = None
    seconds: float | None = None
    attempts: list[AttemptReport] = field(default_factory=list)

    def outcome(self, call: Call, seconds: float) -> Outcome:
        error, by = self.error, self.by or call.expert
        report = CallReport(
            uid=by.uid,
            peer_id=by.peer_id,
            rows=len(call.rows),
            outcome="answered" if self.tensors is not None else "failed" if error is not None else "late",
            seconds=seconds if self.seconds is None else self.seconds,
            error="" if error is None else f"{type(error).__name__}: {error}",
            attempts=tuple(self.attempts),
        )
        return Outcome(report, by, self.tensors, error)
