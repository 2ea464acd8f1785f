"""The Runtime: one thread per device, which computes batches of many experts one after another.

A request's way through two threads::

    Trio                                        device thread
    pool.submit: check, put at the desk ------> desk.next_batch: which pool, which tasks (batching.py)
      waits                                     gather -> forward or backward -> scatter (memory.py)
      woken <---------------------------------- answer: one wake-up for the whole batch
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

import outcome
import torch
import trio

from hivemind_p2p.errors import AnomalyDetected, ConfigError, ExpertError, ExpertFailed, NodeClosed
from hivemind_p2p.runtime.batching import next_pool
from hivemind_p2p.runtime.expert_backend import ExpertBackend
from hivemind_p2p.runtime.memory import gather, give_back_memory, scatter
from hivemind_p2p.runtime.pool import Abandoned, Answer, Job, Task, TaskPool, answer

logger = logging.getLogger(__name__)
_IDLE: Final = 2.0
"""Seconds without a batch after which memory that is not used is given back, once."""
_BUSY: Final = 60.0
"""Seconds after which it is given back between two batches, where there is always a next one: what the allocator keeps
in the gaps between what lives longer adds up over hours, and would never be found free otherwise."""


class Runtime:
    """Computes what waits in the pools of its experts, on one thread, until it is shut down.

    ``with Runtime(backends):`` or ``async with``, once. On leaving, the batch under way is finished; requests that
    still wait get :class:`~hivemind_p2p.errors.NodeClosed`.

    Args:
        backends: experts by uid.
        device: move the experts there, and compute there: ``"cpu"``, ``"cuda:1"``. None leaves each module where it is,
            and gives it tensors in main memory.
        shutdown_timeout: seconds that a batch under way may take to finish when the Runtime is shut down. After that
            it is left behind, and its callers get ``NodeClosed`` too.
        clock: tells the time by which tasks are ordered, in seconds.
    """

    def __init__(
        self,
        backends: Mapping[str, ExpertBackend],
        *,
        device: torch.device | str | None = None,
        shutdown_timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backends = dict(backends)
        self.device = None if device is None else torch.device(device)
        self.pools = tuple(pool for each in backends.values() for pool in (each.forward_pool, each.backward_pool))
        self.shutdown_timeout = shutdown_timeout
        self._desk = _Desk(clock)
        self._pinned = self.device is not None and self.device.type == "cuda"
        self._under_way: list[Task] = []
        self._thread = threading.Thread(target=self._serve, name=f"Runtime on {self.device or 'cpu'}", daemon=True)

    def start(self) -> None:
        """Move the experts to the device and start to compute. May block for seconds where the device is a GPU.

        Raises:
            ConfigError: the device cannot be used, or a pool is served by another Runtime.
            NodeClosed: it ran before.
        """
        if self._thread.ident is not None:
            raise NodeClosed(f"{self!r} runs only once; make a new one")
        taken = [pool.name for pool in self.pools if pool.desk is not None]
        if taken:
            raise ConfigError(f"another Runtime serves {', '.join(taken)} already; shut it down first")
        if self.device is not None:
            try:
                self.device = torch.empty(0, device=self.device).device  # with its index
            except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
                raise ConfigError(f"device {self.device} cannot be used: {error}") from error
            for backend in self.backends.values():
                backend.to(self.device)
        self._thread.start()
        for pool in self.pools:
            pool.desk = self._desk

    def shutdown(self) -> None:
        """Stop. Requests that wait fail at once; the batch under way has ``shutdown_timeout`` to finish. Blocks."""
        for pool in self.pools:
            if pool.desk is self._desk:
                pool.desk = None
        _refuse(self._desk.close())
        if self._thread.ident is not None:
            self._thread.join(self.shutdown_timeout)
        if self._thread.is_alive():
            logger.warning("%r left a batch behind that takes longer than %g s", self, self.shutdown_timeout)
            _refuse(self._under_way)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    async def __aenter__(self) -> Self:
        await trio.to_thread.run_sync(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):  # bounded by shutdown_timeout
            await trio.to_thread.run_sync(self.shutdown)

    def __repr__(self) -> str:
        state = "running" if self._thread.is_alive() else "not running"
        waiting = sum(len(pool.queue) for pool in self.pools)
        done = sum(pool.stats.batches for pool in self.pools)
        return (
            f"<Runtime on {self.device or 'cpu'}: {state}, {len(self.backends)} experts, {waiting} requests waiting, "
            f"{done} batches done>"
        )

    def _serve(self) -> None:
        """The device thread."""
        try:
            # A new thread computes on all cores, whatever torch.set_num_threads said elsewhere, until it is asked.
            torch.set_num_threads(torch.get_num_threads())
            if self._pinned:
                torch.cuda.set_device(self.device)  # for modules that ask for "cuda"
            while (batch := self._desk.next_batch()) is not None:
                if callable(batch):
                    batch(True)
                    continue
                pool, self._under_way = batch
                self._run(pool, self._under_way)
                self._under_way = []
                del batch  # its tensors need not live until the next one comes
        finally:
            _refuse(self._desk.close() + self._under_way)

    def _run(self, pool: TaskPool, tasks: list[Task]) -> None:
        """Compute a batch, finish it once, and answer everybody."""
        answers = self._compute(pool, tasks)
        rows = sum(task.rows for task, result in answers if isinstance(result, outcome.Value))
        if pool.finish is None or rows == 0:
            answer(answers)
        elif pool.finish_later:
            answer(answers)
            del answers
            _finish(pool, rows)
        else:
            error = _finish(pool, rows)
            if error is not None:
                answers = [(task, outcome.Error(_failure(pool, rows, error))) for task in tasks]
            answer(answers)

    def _compute(self, pool: TaskPool, tasks: list[Task], *, again: bool = False) -> list[Answer]:
        """What fails for several requests is computed again in halves, until the bad ones are alone: so nobody fails by
        the company that he is in, and what is too large for the device's memory gets a second chance.
        """
        rows = [task.rows for task in tasks]
        started = time.perf_counter()
        try:
            inputs = gather([task.tensors for task in tasks], pinned=self._pinned)
            outputs = pool.process(*inputs, still_wanted=lambda: any(task.waiter is not None for task in tasks))
            answers = scatter(outputs, rows)
        except Abandoned:
            return []
        except (Exception, SystemExit) as error:  # the boundary of one batch: whatever a module does, we live on
            pool.stats.failed_batches += 1
            if not again:
                logger.warning(
                    "a batch of %s failed (%d requests, %d rows)", pool.name, len(tasks), sum(rows), exc_info=True
                )
            if len(tasks) == 1:
                pool.stats.failed_tasks += 1
                pool.stats.anomalies += isinstance(error, AnomalyDetected)
                return [(tasks[0], outcome.Error(_failure(pool, sum(rows), error)))]
        else:
            pool.stats.batches += 1
            pool.stats.tasks += len(tasks)
            pool.stats.rows += sum(rows)
            pool.stats.seconds += time.perf_counter() - started
            return [(task, outcome.Value(mine)) for task, mine in zip(tasks, answers, strict=True)]
        half = len(tasks) // 2
        return [each for part in (tasks[:half], tasks[half:]) for each in self._compute(pool, part, again=True)]


class _Desk:
    """Between Trio and the device thread: one lock, one condition, the pools in which tasks wait."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.now = clock
        self._changed = threading.Condition(threading.Lock())
        self._busy: dict[TaskPool, None] = {}
        self._jobs: deque[Job] = deque()
        self._closed = False
        self._tidy = True
        self._tidied = clock()

    def put(self, pool: TaskPool, task: Task) -> None:
        with self._changed:
            if self._closed:
                raise NodeClosed(f"the Runtime that served {pool.name} was shut down")
            pool.queue.add(task)
            self._busy[pool] = None
            self._changed.notify()

    def withdraw(self, pool: TaskPool, task: Task) -> None:
        with self._changed:
            if pool.queue.discard(task) and not pool.queue:
                self._busy.pop(pool, None)

    def put_job(self, job: Job) -> None:
        with self._changed:
            if not self._closed:
                self._jobs.append(job)
                self._changed.notify()
                return
        job(False)

    def next_batch(self) -> tuple[TaskPool, list[Task]] | Job | None:
        """The next job, or batch as soon as one is due; None once the desk is closed."""
        with self._changed:
            while not self._closed:
                if self._jobs:
                    return self._jobs.popleft()
                now = self.now()
                pool, due = next_pool(self._busy, now)
                if pool is not None:
                    if not self._tidy and now - self._tidied >= _BUSY:
                        return self._tidying(now)
                    self._tidy = False
                    tasks = pool.queue.take()
                    if not pool.queue:
                        del self._busy[pool]
                    return pool, tasks
                if self._busy:
                    self._changed.wait(min(due - now, threading.TIMEOUT_MAX))
                elif self._tidy:
                    self._changed.wait()
                elif not self._changed.wait(_IDLE) and not (self._busy or self._jobs or self._closed):
                    return self._tidying(self.now())
        return None

    def _tidying(self, now: float) -> Job:
        self._tidy, self._tidied = True, now
        return _tidy_up

    def close(self) -> list[Task]:
        """Let nobody in any more; who waits."""
        with self._changed:
            self._closed = True
            waiting = [task for pool in self._busy for task in pool.queue.clear()]
            self._busy.clear()
            jobs, self._jobs = self._jobs, deque()
            self._changed.notify()
        for job in jobs:
            job(False)
        return waiting


def _tidy_up(run: bool) -> None:
    """The job of a thread that has nothing else to do."""
    if run:
        give_back_memory()


def _refuse(tasks: list[Task]) -> None:
    closed = "the Runtime was shut down before it came to this request; ask another replica"
    answer([(task, outcome.Error(NodeClosed(closed))) for task in tasks])


def _finish(pool: TaskPool, rows: int) -> BaseException | None:
    """What went wrong. It is not tried again: a part of it may have been done."""
    assert pool.finish is not None
    try:
        pool.finish(rows)
    except (Exception, SystemExit) as error:  # the boundary of one batch
        pool.stats.failed_batches += 1
        logger.warning("%s could not be finished after a batch of %d rows", pool.name, rows, exc_info=True)
        return error
    return None


def _failure(pool: TaskPool, rows: int, error: BaseException) -> ExpertError:
    """An error of its own for each caller: raising adds to an exception's traceback."""
    for kind in (ExpertFailed, AnomalyDetected):
        if type(error) is kind:
            return kind(*error.args)
    failed = ExpertFailed(f"{pool.name} failed on a batch of {rows} rows: {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed
