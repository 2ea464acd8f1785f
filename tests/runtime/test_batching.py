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
    client: str | None = None
    priority: float = 0.0


@dataclass
class Pool:
    due: float
    urgency: float


def queue(**limits) -> TaskQueue[Task]:
    defaults = {
        "min_batch_size": 1,
        "max_batch_size": 8,
        "batch_wait_timeout_s": 2.0,
        "max_tasks": 100,
        "max_rows": 1000,
    }
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


def order_of(line: TaskQueue[Task]) -> str:
    """Whose tasks are taken, one after the other."""
    return "".join(task.client or "." for _ in range(len(line)) for task in line.take())


def test_clients_are_served_in_turn_however_much_they_send():
    line = queue(max_batch_size=1)
    for client in "aaaaab":
        line.add(Task(1, client=client))
    for _ in range(2):
        line.take()  # the first of a, and b
    for client in "bccc":
        line.add(Task(1, client=client))
    assert order_of(line) == "cabcacaa"


def test_turns_are_counted_in_rows():
    line = queue(max_batch_size=1)
    for rows, client in [(4, "a"), (4, "a"), (1, "b"), (1, "b"), (1, "b"), (1, "b"), (1, "b")]:
        line.add(Task(rows, client=client))
    assert order_of(line) == "abbbbab"


def test_who_comes_back_after_a_while_has_no_debts_and_no_credit():
    line = queue(max_batch_size=1)
    line.add(Task(500, client="a"))
    line.take()
    for client in "baab":
        line.add(Task(1, client=client))
    assert order_of(line) == "baab"


def test_who_leaves_the_line_has_had_no_turn():
    line = queue(max_batch_size=1)
    for _ in range(4):
        line.add(Task(1, client="a"))
    for _ in range(9):
        late = Task(5, client="b")
        line.add(late)
        assert line.discard(late)
    line.add(Task(1, client="b"))
    assert order_of(line) == "abaaa"


def test_the_smallest_priority_number_first():
    line = queue(max_batch_size=1)
    for number, client in enumerate("abc"):
        line.add(Task(1, client=client, priority=-number))
    line.add(Task(1, client="d", priority=-1))
    assert order_of(line) == "cbda"
    assert filled(1, 1).oldest == 0.0


def test_a_client_who_floods_the_line_leaves_room_for_others():
    line = queue(max_tasks=16)
    for _ in range(8):  # half of the line
        line.add(Task(1, client="a"))
    with pytest.raises(Overloaded, match="what room is left is for others"):
        line.add(Task(1, client="a"))
    for client in "bbbb":
        line.add(Task(1, client=client))
    with pytest.raises(Overloaded):
        line.add(Task(1, client="b"))
    line.add(Task(1, client="c"))
    line = queue(max_rows=16)
    line.add(Task(10, client="a"))
    with pytest.raises(Overloaded):
        line.add(Task(1, client="a"))
    line.add(Task(6, client="b"))


@given(
    requests=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=60),
    takes=st.integers(0, 20),
)
def test_among_clients_who_wait_nobody_gets_much_more_than_another(requests, takes):
    """The guarantee of start-time fair queueing: two that wait all the time differ by their largest tasks at most."""
    line = queue(max_batch_size=9, max_tasks=1000)
    for client, rows in requests:
        line.add(Task(rows, client=str(client)))
    had: dict[str, int] = dict.fromkeys({str(client) for client, _ in requests}, 0)
    for _ in range(takes):
        for task in line.take():
            had[task.client] += task.rows
            waiting = {each.client for each in line._line}
            for one in waiting:
                for other in waiting:
                    assert had[one] - had[other] <= 9 + 9


def test_clients_of_long_ago_are_forgotten():
    line = queue(max_batch_size=1, max_tasks=10_000)
    line.add(Task(1, client="stays"))
    for i in range(1000):
        line.add(Task(1, client=f"client {i}"))
        line.take()
    assert len(line) == 1
    assert len(line._clients) < 50
    for _ in range(1000):
        assert line.discard(next(iter(line._line)))
        line.add(Task(1, client="x"))
        line.add(Task(1, client="y"))
        line.discard(list(line._line)[-1])
    assert len(line._order) < 50


@pytest.mark.parametrize(
    "limits",
    [
        {"min_batch_size": 0},
        {"min_batch_size": 9},
        {"max_tasks": 0},
        {"max_rows": 0},
        {"batch_wait_timeout_s": -1.0},
        {"batch_wait_timeout_s": math.nan},
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
        self.line, self.due, self.urgency = line, line.due, line.next_came
