"""Where requests of one kind to one expert wait for the device: the Trio side of the Runtime."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import outcome
import torch
import trio

from hivemind_p2p.errors import NodeClosed, Overloaded
from hivemind_p2p.runtime.batching import TaskQueue
from hivemind_p2p.runtime.memory import Tensors
from hivemind_p2p.runtime.schema import Schema

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
Job = Callable[[bool], None]
"""Something else than a batch; called with False if the device thread does not come to it."""

_CHECKED_AT_ONCE: Final = 2**20
"""Bytes whose reading (a fraction of a millisecond) is not worth a thread."""


class Abandoned(Exception):
    """A batch was given up between two of its pieces: nobody waits for it any more. Never leaves the Runtime."""


def always() -> bool:
    """The answer of who still wants what is computed."""
    return True


class Process(Protocol):
    """What a pool does to a batch: flat tensors in, flat tensors with as many rows out. Runs on the device thread."""

    def __call__(self, *tensors: torch.Tensor, still_wanted: Callable[[], bool]) -> Tensors: ...


@dataclass(eq=False, slots=True)
class Task:
    """One request.

    Attributes:
        tensors: its flat tensors.
        rows: their batch size.
        arrived: when it came, by the Runtime's clock.
        token: the Trio run that it came from.
        waiter: the Trio task that waits for it; None once that one has its answer or has gone. Set in that Trio run
            only.
        client, priority: see :mod:`~hivemind_p2p.runtime.batching`.
    """

    tensors: Tensors
    rows: int
    arrived: float
    token: trio.lowlevel.TrioToken
    waiter: trio.lowlevel.Task | None
    client: Hashable | None = None
    priority: float = 0.0


@dataclass
class PoolStats:
    """What a pool has done so far. Written by the device thread, to be read by anybody.

    Attributes:
        batches: that were computed to their end.
        tasks: requests in them.
        rows: in them.
        seconds: that they took on the device thread.
        failed_batches: that ended in an exception, and were computed again in halves if they were several requests.
        failed_tasks: requests that failed by themselves.
        anomalies: those of them that would have been answered, or learned, with NaN or infinity.
    """

    batches: int = 0
    tasks: int = 0
    rows: int = 0
    seconds: float = 0.0
    failed_batches: int = 0
    failed_tasks: int = 0
    anomalies: int = 0


class Desk(Protocol):
    """Where a pool puts its tasks, and takes back those that nobody waits for any more; safe in threads."""

    def now(self) -> float: ...
    def put(self, pool: TaskPool, task: Task) -> None: ...
    def withdraw(self, pool: TaskPool, task: Task) -> None: ...
    def put_job(self, job: Job) -> None: ...


class TaskPool:
    """Requests of one kind to one expert.

    Args:
        name: for messages and metrics: ``ffn.0.0_forward``.
        process: computes a batch.
        inputs: what a request must look like.
        outputs: what its answer looks like.
        finish: called on the device thread after a batch, with the number of its rows that were computed: what is to be
            done once, whatever became of single requests.
        finish_later: after the answers have been sent.
        detect_anomalies: refuse requests with NaN or infinity.
        limits: the arguments of :class:`~hivemind_p2p.runtime.batching.TaskQueue`.

    Attributes:
        queue: who waits; the desk's business.
        desk: of the Runtime that serves this pool, while it does.
        priority: None, a number, or a function from the time at which the task came whose turn is next to a number. The
            pool with the smallest is served first. None stands for that time itself, by the Runtime's clock, so that
            ``pool.priority = lambda came: came - 0.5`` puts a pool half a second ahead of the others. The function
            runs on the device thread; one that raises is logged, and forgotten.
        stats: what it has done.
    """

    def __init__(
        self,
        name: str,
        process: Process,
        inputs: Schema,
        outputs: Schema,
        *,
        finish: Callable[[int], None] | None = None,
        finish_later: bool = False,
        detect_anomalies: bool = True,
        **limits: Any,
    ) -> None:
        self.name, self.process, self.inputs, self.outputs = name, process, inputs, outputs
        self.finish, self.finish_later, self.detect_anomalies = finish, finish_later, detect_anomalies
        self.queue: TaskQueue[Task] = TaskQueue(**limits)
        self.desk: Desk | None = None
        self.priority: float | Callable[[float], float] | None = None
        self.stats = PoolStats()

    async def submit(self, *tensors: torch.Tensor, client: Hashable | None = None, priority: float = 0.0) -> Tensors:
        """Have a request computed, together with others that wait. From any Trio run.

        A cancelled request is not computed, if its batch has not started yet. The tensors must not be changed before
        the answer is there.

        Args:
            tensors: flat, in main memory, all of one batch size, of any number of rows; none gets an empty answer.
            client: who sends it, so that clients are served in turn and none fills the line.
            priority: within this pool, the smaller the sooner.

        Returns:
            Flat tensors with as many rows, in main memory; they are the caller's.

        Raises:
            SchemaMismatch: they do not fit the expert's schema.
            AnomalyDetected: there is NaN or infinity in them, or would be in the answer.
            Overloaded: too many requests wait already, of all or of this client. ``retry_after`` says when they may be
                done, if the device goes on as it did and does nothing else.
            ExpertFailed: the expert raised while it computed this request.
            NodeClosed: the Runtime is not running, or was shut down before it came to this request.
        """
        rows = self.inputs.check_inputs(tensors)
        desk = self.desk  # read once: it goes when another thread shuts the Runtime down
        if desk is None:
            raise NodeClosed(f"no Runtime serves {self.name}; enter `async with Runtime(...)` around its use")
        if rows == 0:
            await trio.lowlevel.checkpoint()
            return self.outputs.make_zeros(0)
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.detect_anomalies:
            if sum(tensor.nbytes for tensor in tensors) > _CHECKED_AT_ONCE:
                await trio.to_thread.run_sync(self.inputs.check_finite, tensors)
            else:
                self.inputs.check_finite(tensors)
        token, waiter = trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()
        task = Task(tensors, rows, desk.now(), token, waiter, client, priority)
        try:
            desk.put(self, task)
        except Overloaded as error:
            raise Overloaded(str(error), retry_after=self._time_of_line()) from None

        def give_up(_: object) -> trio.lowlevel.Abort:
            task.waiter = None
            desk.withdraw(self, task)
            return trio.lowlevel.Abort.SUCCEEDED

        answer: Tensors = await trio.lowlevel.wait_task_rescheduled(give_up)
        return answer

    async def between_batches(self, sync_fn: Callable[[], _T]) -> _T:
        """``sync_fn()`` on the device thread, as soon as the batch under way is done: so it sees no half-made step.

        Raises:
            NodeClosed: the Runtime is not running, or is shut down before it comes to it.
        """
        desk = self.desk
        if desk is None:
            raise NodeClosed(f"no Runtime serves {self.name}; enter `async with Runtime(...)` around its use")
        done, token = trio.Event(), trio.lowlevel.current_trio_token()
        result: outcome.Value[_T] | outcome.Error = outcome.Error(NodeClosed("the Runtime was shut down before"))

        def job(run: bool) -> None:
            nonlocal result
            if run:
                result = outcome.capture(sync_fn)
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        desk.put_job(job)
        await done.wait()
        return result.unwrap()

    @property
    def due(self) -> float:
        """When its next batch may start; infinity if nobody waits."""
        return self.queue.due

    @property
    def urgency(self) -> float:
        """Its priority now, as a number that can be compared."""
        try:
            said = self.priority(self.queue.next_came) if callable(self.priority) else self.priority
            if said is not None:
                return math.inf if math.isnan(said) else said
        except Exception:  # the boundary of the device thread's loop, which must not end for this
            logger.exception("the priority of %s cannot be used; from now on it is the age of its next task", self.name)
            self.priority = None
        return self.queue.next_came

    def _time_of_line(self) -> float:
        per_row = self.stats.seconds / self.stats.rows if self.stats.rows else 0.0
        return min(max(per_row * self.queue.rows, 0.05), 60.0)

    def __repr__(self) -> str:
        return (
            f"<TaskPool {self.name}: {len(self.queue)} requests of {self.queue.rows} rows waiting, "
            f"{self.stats.batches} batches of {self.stats.rows} rows done, {self.stats.failed_batches} failed>"
        )


Answer = tuple[Task, "outcome.Value[Tensors] | outcome.Error"]


def answer(answers: Sequence[Answer]) -> None:
    """Wake those who wait, each with its answer, in the Trio runs that they came from. Safe in threads."""
    tokens = {task.token for task, _ in answers}
    for token in tokens:
        mine = answers if len(tokens) == 1 else [each for each in answers if each[0].token is token]
        with contextlib.suppress(trio.RunFinishedError):  # and with it everybody who waited
            token.run_sync_soon(_wake, mine)


def _wake(answers: Sequence[Answer]) -> None:
    for task, result in answers:
        waiter, task.waiter = task.waiter, None
        if waiter is not None:
            trio.lowlevel.reschedule(waiter, result)
