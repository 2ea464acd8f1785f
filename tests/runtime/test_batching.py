"""The policy of batching: its rules one by one, and what holds whatever happens in a line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.errors import ConfigError, Overloaded
from hivemind_p2p.runtime.batching import TaskQueue, next_pool


@dataclass(eq=False)
class Task:
    rows: int
    arrived: float = 0.0


@dataclass
class Pool:
    due: float
    urgency: float


def queue(**limits) -> TaskQueue[Task]:
    defaults = {"min_batch_size": 1, "max_batch_size": 8, "batch_wait_timeout": 2.0, "max_tasks": 100, "max_rows": 1000}
    return TaskQueue(**defaults | limits)


def filled(*rows: int, **limits) -> TaskQueue[Task]:
    line = queue(**limits)
    for arrived, size in enumerate(rows):
        line.add(Task(size, float(arrived)))
    return line


@pytest.mark.parametrize(
    ("waiting", "batches"),
    [
        ((1,), [[1]]),
        ((3, 3, 2), [[3, 3, 2]]),
        ((3, 3, 3, 2), [[3, 3], [3, 2]]),
        ((3, 6, 1), [[3], [6, 1]]),  # the 1 does not pass the 6
        ((8, 8), [[8], [8]]),
        ((20,), [[20]]),  # runs in pieces, alone
        ((20, 1), [[20], [1]]),
        ((1, 20, 1), [[1], [20], [1]]),
    ],
)
def test_a_batch_is_the_oldest_that_fit_together(waiting, batches):
    line = filled(*waiting)
    assert [[task.rows for task in line.take()] for _ in batches] == batches
    assert len(line) == line.rows == 0


def test_nobody_waits_for_company_unless_told_to():
    assert filled(1).due == 0.0
    assert queue().due == math.inf


def test_min_batch_size_waits_for_rows_or_for_the_time_to_pass():
    line = filled(2, 1, min_batch_size=4)
    assert line.due == 2.0  # the first came at 0 and waits for 2 seconds
    line.add(Task(1, 1.5))
    assert line.due == 0.0
    line.take()
    line.add(Task(1, 7.0))
    assert line.due == 9.0


def test_waiting_for_more_is_useless_when_the_next_does_not_fit():
    line = filled(1, 8, min_batch_size=4)
    assert line.due == 0.0
    assert [task.rows for task in line.take()] == [1]


def test_a_full_line_refuses_and_a_lone_task_of_any_size_is_let_in():
    line = filled(1, 1, max_tasks=2)
    with pytest.raises(Overloaded, match=r"1 rows find 2 requests of 2 rows waiting"):
        line.add(Task(1))
    line = filled(6, max_rows=10)
    with pytest.raises(Overloaded):
        line.add(Task(5))
    line.add(Task(4))
    assert filled(50, max_rows=10).rows == 50


@pytest.mark.parametrize(
    "limits",
    [
        {"min_batch_size": 0},
        {"min_batch_size": 9},
        {"max_tasks": 0},
        {"max_rows": 0},
        {"batch_wait_timeout": -1.0},
        {"batch_wait_timeout": math.nan},
    ],
)
def test_limits_that_make_no_sense(limits):
    with pytest.raises(ConfigError):
        queue(**limits)


def test_the_most_urgent_of_the_pools_that_are_due():
    late, urgent, early = Pool(due=9.0, urgency=-5.0), Pool(due=3.0, urgency=1.0), Pool(due=1.0, urgency=2.0)
    assert next_pool([late, early, urgent], 5.0) == (urgent, 9.0)
    assert next_pool([late, early, urgent], 2.0) == (early, 3.0)
    assert next_pool([late, early, urgent], 0.0) == (None, 1.0)
    assert next_pool([], 0.0) == (None, math.inf)


events = st.lists(st.one_of(st.integers(1, 30), st.just("take"), st.just("oldest leaves"), st.just("newest leaves")))


@given(
    events=events,
    limits=st.fixed_dictionaries(
        {
            "max_batch_size": st.integers(1, 12),
            "max_tasks": st.integers(1, 8),
            "max_rows": st.integers(1, 60),
        }
    ),
)
def test_no_task_is_lost_or_doubled_whatever_happens(events, limits):
    line = queue(**limits)
    waiting: list[Task] = []
    for now, event in enumerate(events):
        if event == "take":
            batch = line.take()
            assert batch == waiting[: len(batch)], "oldest first, nobody passed over"
            assert bool(batch) == bool(waiting)
            rows = sum(task.rows for task in batch)
            assert rows <= line.max_batch_size or len(batch) == 1
            del waiting[: len(batch)]
            if batch and waiting:
                assert rows + waiting[0].rows > line.max_batch_size, "as many as fit"
        elif isinstance(event, int):
            task = Task(event, float(now))
            room = len(waiting) < line.max_tasks and line.rows + task.rows <= line.max_rows
            if waiting and not room:
                with pytest.raises(Overloaded):
                    line.add(task)
            else:
                line.add(task)
                waiting.append(task)
        elif waiting:
            assert line.discard(waiting.pop(0 if event == "oldest leaves" else -1))
        assert len(line) == len(waiting)
        assert line.rows == sum(task.rows for task in waiting)
        assert line.oldest == (waiting[0].arrived if waiting else math.inf)
    assert line.clear() == waiting
    assert not line.discard(Task(1))
    assert repr(line) == "<TaskQueue: 0 tasks of 0 rows>"


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=40),
    min_batch_size=st.integers(1, 6),
)
def test_across_pools_everybody_is_served_in_order_of_arrival(arrivals, min_batch_size):
    """Without priorities, no task is served after one that came to another pool when its batch was complete."""
    lines = {i: queue(min_batch_size=min_batch_size, max_batch_size=6) for i in range(4)}
    for now, (pool, rows) in enumerate(arrivals):
        lines[pool].add(Task(rows, float(now)))
    served = []
    late = len(arrivals) + 10.0
    while any(lines.values()):
        pools = [Contended(line) for line in lines.values() if line]
        chosen, _ = next_pool(pools, late)
        assert chosen is not None
        assert chosen.urgency == min(pool.urgency for pool in pools)
        served.append(chosen.line.take())
    firsts = [batch[0].arrived for batch in served]
    assert firsts == sorted(firsts)
    assert sorted(task.arrived for batch in served for task in batch) == [float(i) for i in range(len(arrivals))]


class Contended:
    def __init__(self, line: TaskQueue[Task]) -> None:
        self.line, self.due, self.urgency = line, line.due, line.oldest
