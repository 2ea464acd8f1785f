"""Which waiting tasks make the next batch, and which pool goes first. Pure: no clock, no threads, no tensors.

The rules, all of them:

1. The smallest priority number first; by default all are 0. Among equals, clients in turn, by rows: who has had fewer
   of late goes first (start-time fair queueing: Goyal, Vin, Cheng 1996). So a client alone, and clients who send one
   request after the other, are served oldest first, and one who sends many at once waits behind his own.
2. A batch is the first tasks of one pool in that order, as many as fit ``max_batch_size`` rows together. Nobody is
   passed over for a smaller task behind.
3. Tasks stay whole. One that alone has more rows than ``max_batch_size`` is a batch of its own, which is computed in
   pieces.
4. A batch is due at once when ``min_batch_size`` rows wait, else when its oldest task has waited for
   ``batch_wait_timeout_s`` seconds. So with a ``min_batch_size`` of 1 nobody ever waits for company, and with a larger
   one nobody waits for ever, as they do in hivemind. A batch has fewer rows than ``min_batch_size`` only after that
   time, or when the next task in line does not fit beside it.
5. Of the pools whose batch is due, the one with the smallest priority number goes first. Unless the pool says
   otherwise, that is the time at which the task came whose turn is next there: one that may wait does not hurry others.
6. The line is bounded, in tasks and in rows; who finds it full is refused, and so is a client who has as much in it as
   there is room left (Choudhury, Hahne 1998: "dynamic queue length thresholds"): whoever floods it leaves room for
   others. A task that is longer than the whole line is let in when nobody waits.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
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

    @property
    def client(self) -> Hashable | None:
        """Whose it is. All whose client is None are one client, which may fill the whole line."""

    @property
    def priority(self) -> float:
        """The smaller, the sooner."""


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
    """The line of one pool.

    Args:
        min_batch_size: rows that a batch waits for.
        max_batch_size: the most rows of a batch of several tasks.
        batch_wait_timeout_s: seconds that the oldest task waits for ``min_batch_size`` rows.
        max_tasks: the most tasks that may wait.
        max_rows: the most rows that may wait.
    """

    def __init__(
        self, *, min_batch_size: int, max_batch_size: int, batch_wait_timeout_s: float, max_tasks: int, max_rows: int
    ) -> None:
        if not 1 <= min_batch_size <= max_batch_size:
            raise ConfigError(
                f"1 <= min_batch_size <= max_batch_size must hold, not {min_batch_size}, {max_batch_size}"
            )
        if not (max_tasks >= 1 and max_rows >= 1 and batch_wait_timeout_s >= 0):
            raise ConfigError("the line of a pool needs room for a task and a row, and a timeout that is not negative")
        self.min_batch_size = min_batch_size
        self.max_batch_size = max_batch_size
        self.batch_wait_timeout_s = batch_wait_timeout_s
        self.max_tasks = max_tasks
        self.max_rows = max_rows
        self.rows = 0
        self._line: dict[T, None] = {}
        self._order: list[tuple[float, float, int, T]] = []  # a heap; some may have left already
        self._count = itertools.count()
        self._clients: dict[Hashable, _Client] = {}
        self._turn = 0.0

    def add(self, task: T) -> None:
        """Put a task into the line.

        Raises:
            Overloaded: the line is full, or the client has his share of it.
        """
        tasks_left, rows_left = self.max_tasks - len(self._line), self.max_rows - self.rows
        if self._line and (tasks_left < 1 or task.rows > rows_left):
            raise Overloaded(
                f"{task.rows} rows find {len(self._line)} requests of {self.rows} rows waiting, and no more than "
                f"{self.max_tasks} of {self.max_rows} may wait; try again later, or another replica"
            )
        client = self._clients.get(task.client) or _Client()
        if client.tasks and task.client is not None and (client.tasks >= tasks_left or client.rows >= rows_left):
            raise Overloaded(
                f"{client.tasks} requests of {client.rows} rows of this client wait already, and what room is left is "
                "for others; try again later, or another replica"
            )
        start = max(self._turn, client.next_turn)
        client.next_turn = start + task.rows
        client.tasks += 1
        client.rows += task.rows
        self._clients[task.client] = client
        heapq.heappush(self._order, (task.priority, start, next(self._count), task))
        self._line[task] = None
        self.rows += task.rows

    def discard(self, task: T) -> bool:
        """Take out a task that is not wanted any more, wherever it stands: it has had no turn. Whether it was there."""
        client = self._clients.get(task.client)
        there = self._remove(task)
        if there and client is not None:
            client.next_turn -= task.rows
        return there

    def _remove(self, task: T) -> bool:
        if task not in self._line:
            return False
        del self._line[task]
        self.rows -= task.rows
        client = self._clients[task.client]
        client.tasks -= 1
        client.rows -= task.rows
        self._forget()
        return True

    def _forget(self) -> None:
        """Tasks that have left, and what clients have had who wait for nothing now; not each time."""
        if not self._line:
            self._order.clear()
            self._clients.clear()
        most = 2 * len(self._line) + 16
        if len(self._order) > most:
            self._order = [entry for entry in self._order if entry[3] in self._line]
            heapq.heapify(self._order)
        if len(self._clients) > most:
            self._clients = {key: client for key, client in self._clients.items() if client.tasks}

    def take(self) -> list[T]:
        """Take the next batch out of the line, due or not (rules 1 to 3)."""
        batch: list[T] = []
        room = self.max_batch_size
        while self._order:
            _, start, _, task = self._order[0]
            if task in self._line:
                if batch and task.rows > room:
                    break
                batch.append(task)
                room -= task.rows
                self._turn = max(self._turn, start)
            heapq.heappop(self._order)
            self._remove(task)
        return batch

    def clear(self) -> list[T]:
        """Take everybody out, oldest first."""
        everybody = list(self._line)
        for task in everybody:
            self.discard(task)
        return everybody

    @property
    def oldest(self) -> float:
        """When the first in line came; infinity if nobody waits."""
        return next(iter(self._line)).arrived if self._line else math.inf

    @property
    def next_came(self) -> float:
        """When the one came whose turn is next; infinity if nobody waits."""
        while self._order and self._order[0][3] not in self._line:
            heapq.heappop(self._order)
        return self._order[0][3].arrived if self._order else math.inf

    @property
    def due(self) -> float:
        """When the next batch may start (rule 4); infinity if nobody waits."""
        return self.oldest if self.rows >= self.min_batch_size else self.oldest + self.batch_wait_timeout_s

    def __len__(self) -> int:
        return len(self._line)

    def __repr__(self) -> str:
        return f"<TaskQueue: {len(self)} tasks of {self.rows} rows>"


@dataclass(slots=True)
class _Client:
    """What waits of one client, and from when on more of it would have its turn."""

    tasks: int = 0
    rows: int = 0
    next_turn: float = 0.0


def next_pool(pools: Iterable[P], now: float) -> tuple[P | None, float]:
    """The pool whose batch is next (rule 5); if none is due, None and the time at which one will be.

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
