"""Which waiting tasks make the next batch, and which pool goes first. Pure: no clock, no threads, no tensors.

The rules, all of them:

1. Oldest first. A batch is the oldest tasks of one pool, as many as fit ``max_batch_size`` rows together. Nobody is
   passed over for a smaller task behind.
2. Tasks stay whole. One that alone has more rows than ``max_batch_size`` is a batch of its own, which is computed in
   pieces.
3. A batch is due at once when ``min_batch_size`` rows wait, else when its oldest task has waited for
   ``batch_wait_timeout`` seconds. So with a ``min_batch_size`` of 1 nobody ever waits for company, and with a larger
   one nobody waits for ever, as they do in hivemind. A batch has fewer rows than ``min_batch_size`` only after that
   time, or when the next task in line does not fit beside it.
4. Of the pools whose batch is due, the one with the smallest priority number goes first. Unless the pool says
   otherwise, that is the time at which its oldest task came.
5. The line is bounded, in tasks and in rows; who finds it full is refused. A task that is longer than the whole line
   is let in when nobody waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from hivemind_p2p.errors import ConfigError, Overloaded


class Waiting(Protocol):
    """What the policy must know of a task. Tasks are told apart by identity."""

    @property
    def rows(self) -> int:
        """Its batch size, above 0."""

    @property
    def arrived(self) -> float:
        """When it came, in seconds of any clock that all tasks share."""


class Contender(Protocol):
    """What the policy must know of a pool in which tasks wait."""

    @property
    def due(self) -> float:
        """When its next batch may start."""

    @property
    def urgency(self) -> float:
        """Its priority now; the smaller, the sooner."""


T = TypeVar("T", bound=Waiting)
P = TypeVar("P", bound=Contender)


class TaskQueue(Generic[T]):
    """The line of one pool, oldest first.

    Args:
        min_batch_size: rows that a batch waits for.
        max_batch_size: the most rows of a batch of several tasks.
        batch_wait_timeout: seconds that the oldest task waits for ``min_batch_size`` rows.
        max_tasks: the most tasks that may wait.
        max_rows: the most rows that may wait.
    """

    def __init__(
        self, *, min_batch_size: int, max_batch_size: int, batch_wait_timeout: float, max_tasks: int, max_rows: int
    ) -> None:
        if not 1 <= min_batch_size <= max_batch_size:
            raise ConfigError(
                f"1 <= min_batch_size <= max_batch_size must hold, not {min_batch_size}, {max_batch_size}"
            )
        if not (max_tasks >= 1 and max_rows >= 1 and batch_wait_timeout >= 0):
            raise ConfigError("the line of a pool needs room for a task and a row, and a timeout that is not negative")
        self.min_batch_size = min_batch_size
        self.max_batch_size = max_batch_size
        self.batch_wait_timeout = batch_wait_timeout
        self.max_tasks = max_tasks
        self.max_rows = max_rows
        self.rows = 0
        self._line: dict[T, None] = {}

    def add(self, task: T) -> None:
        """Put a task at the end of the line.

        Raises:
            Overloaded: the line is full.
        """
        if self._line and (len(self._line) >= self.max_tasks or self.rows + task.rows > self.max_rows):
            raise Overloaded(
                f"{task.rows} rows find {len(self._line)} requests of {self.rows} rows waiting, and no more than "
                f"{self.max_tasks} of {self.max_rows} may wait; try again later, or another replica"
            )
        self._line[task] = None
        self.rows += task.rows

    def discard(self, task: T) -> bool:
        """Take a task out, wherever it stands. Whether it was there."""
        if task not in self._line:
            return False
        del self._line[task]
        self.rows -= task.rows
        return True

    def take(self) -> list[T]:
        """Take the next batch out of the line, due or not (rules 1 and 2)."""
        batch: list[T] = []
        room = self.max_batch_size
        for task in self._line:
            if batch and task.rows > room:
                break
            batch.append(task)
            room -= task.rows
        for task in batch:
            self.discard(task)
        return batch

    def clear(self) -> list[T]:
        """Take everybody out, oldest first."""
        everybody = list(self._line)
        self._line.clear()
        self.rows = 0
        return everybody

    @property
    def oldest(self) -> float:
        """When the first in line came; infinity if nobody waits."""
        return next(iter(self._line)).arrived if self._line else math.inf

    @property
    def due(self) -> float:
        """When the next batch may start (rule 3); infinity if nobody waits."""
        return self.oldest if self.rows >= self.min_batch_size else self.oldest + self.batch_wait_timeout

    def __len__(self) -> int:
        return len(self._line)

    def __repr__(self) -> str:
        return f"<TaskQueue: {len(self)} tasks of {self.rows} rows>"


def next_pool(pools: Iterable[P], now: float) -> tuple[P | None, float]:
    """The pool whose batch is next (rule 4); if none is due, None and the time at which one will be.

    Args:
        pools: those in which tasks wait.
        now: the time, of the clock by which tasks arrived.
    """
    first: P | None = None
    first_urgency = wake = math.inf
    for pool in pools:
        due = pool.due
        if due > now:
            wake = min(wake, due)
            continue
        urgency = pool.urgency
        if first is None or urgency < first_urgency:
            first, first_urgency = pool, urgency
    return first, wake
