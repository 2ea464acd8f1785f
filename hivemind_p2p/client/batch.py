"""All the calls of one batch in one direction, at the same time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import trio

from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.calls import Direction, beside_the_network, call_expert
from hivemind_p2p.client.quorum import Quorum
from hivemind_p2p.client.report import CallReport
from hivemind_p2p.client.schema import ExpertSchema
from hivemind_p2p.errors import AnomalyDetected, HivemindError
from hivemind_p2p.rpc import RPC


@dataclass(frozen=True)
class Patience:
    """How long to wait for the calls of a batch.

    Attributes:
        k_min: answers that each sample should have.
        timeout: seconds for all of it; None: the RPC's own timeout.
        timeout_after_k_min: seconds more, once every sample has ``k_min``; None: until all are done.
    """

    k_min: int
    timeout: float | None = None
    timeout_after_k_min: float | None = None


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
    """How a call ended: with tensors, with an error, or, with neither, not in time."""

    report: CallReport
    tensors: Sequence[torch.Tensor] | None = None
    error: HivemindError | None = None


async def call_experts(
    rpc: RPC,
    direction: Direction,
    schema: ExpertSchema,
    calls: Sequence[Call],
    patience: Patience,
    answers: torch.Tensor,
    *,
    detect_anomalies: bool = False,
) -> list[Outcome]:
    """Make calls at the same time; wait for all of them, or as long as ``patience`` says.

    Args:
        answers: int64 ``[samples]``, answers that each sample has already; counted on in place.
        detect_anomalies: an answer with NaN or infinity in it is a failure.

    Returns:
        How each call ended. A call that fails does not end the others.
    """
    timeout = None if patience.timeout is None else math.inf  # what `scope` ends is late, not failed
    quorum = Quorum(answers, [call.rows for call in calls], patience.k_min)
    outcomes: list[Outcome | None] = [None] * len(calls)
    began = trio.current_time()

    def end(number: int, tensors: Sequence[torch.Tensor] | None = None, error: HivemindError | None = None) -> None:
        outcomes[number] = _outcome(calls[number], trio.current_time() - began, tensors, error)
        quorum.ended(number, answered=tensors is not None)
        shorten()

    def shorten() -> None:
        if patience.timeout_after_k_min is not None and quorum.settled:
            scope.deadline = min(scope.deadline, trio.current_time() + patience.timeout_after_k_min)

    async def make(number: int) -> None:
        call = calls[number]
        try:
            size = sum(tensor[:1].nbytes for tensor in call.tensors) * len(call.rows)
            tensors = [*await beside_the_network(size, _take, call.tensors, call.rows), *call.aligned]
            answer = await call_expert(rpc, call.expert, direction, schema, tensors, timeout)
            if detect_anomalies and not all(tensor.isfinite().all() for tensor in answer):
                raise AnomalyDetected(f"the answer of {call.expert.uid} has NaN or infinity in it")
        except HivemindError as error:
            end(number, error=error)
        else:
            end(number, answer)

    with trio.move_on_after(math.inf if patience.timeout is None else patience.timeout) as scope:
        shorten()
        async with trio.open_nursery() as nursery:
            for number in range(len(calls)):
                nursery.start_soon(make, number)
    seconds = trio.current_time() - began
    return [
        outcome if outcome is not None else _outcome(call, seconds, None, None)
        for call, outcome in zip(calls, outcomes, strict=True)
    ]


def _take(tensors: Sequence[torch.Tensor], rows: torch.Tensor) -> list[torch.Tensor]:
    """Some rows of each; without a copy if they are all, in order."""
    if torch.equal(rows, torch.arange(len(tensors[0]))):
        return list(tensors)
    return [tensor.index_select(0, rows) for tensor in tensors]


def _outcome(
    call: Call, seconds: float, tensors: Sequence[torch.Tensor] | None, error: HivemindError | None
) -> Outcome:
    what = CallReport(
        uid=call.expert.uid,
        peer_id=call.expert.peer_id,
        rows=len(call.rows),
        outcome="answered" if tensors is not None else "failed" if error is not None else "late",
        seconds=seconds,
        error="" if error is None else f"{type(error).__name__}: {error}",
    )
    return Outcome(what, tensors, error)
