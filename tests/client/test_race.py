"""Timelines of one request and its attempts, under a clock that jumps; and when there is a second one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import trio

from hivemind_p2p.client.latency import ENOUGH, MAX_KINDS, STUCK_AT_LEAST, WINDOW, HedgeBudget, Latencies
from hivemind_p2p.client.race import NEVER, first_answer
from hivemind_p2p.errors import DialError, RemoteError

FOREVER = math.inf


async def run(*fates, **options):
    """Attempts with these fates, ``(seconds, error or None)``, one after the other as they are asked for."""
    began, made, cancelled, errors = trio.current_time(), [], [], []
    waiting = list(enumerate(fates))

    async def attempt(who):
        number, (seconds, error) = who
        made.append((number, trio.current_time() - began))
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            cancelled.append(number)
            raise
        if error:
            raise error
        return number

    async def choose(error):
        errors.append(error)
        return waiting.pop(0) if waiting else None

    result = SimpleNamespace(made=made, cancelled=cancelled, errors=errors, answer=None, error=None)
    try:
        result.answer = await first_answer(attempt, choose, **options)
    except RemoteError as error:
        result.error = error
    result.took = trio.current_time() - began
    return result


NO, NOT_THIS_EITHER = RemoteError("no"), RemoteError("not this either")


async def test_one_attempt_is_enough(autojump_clock) -> None:
    done = await run((3, None), (0, None))
    assert (done.answer, done.took, done.made, done.errors) == (0, 3, [(0, 0)], [None])


@pytest.mark.parametrize("hedge_after", [NEVER, 9])
async def test_after_a_failure_the_next_one_is_asked_at_once(autojump_clock, hedge_after) -> None:
    done = await run((3, NO), (2, NOT_THIS_EITHER), (1, None), hedge_after=hedge_after)
    assert (done.answer, done.took, done.made) == (2, 6, [(0, 0), (1, 3), (2, 5)])
    assert done.errors == [None, NO, NOT_THIS_EITHER]


@pytest.mark.parametrize("hedge_after", [NEVER, 9])
async def test_when_all_fail_the_first_says_why(autojump_clock, hedge_after) -> None:
    done = await run((3, NO), (2, NOT_THIS_EITHER), hedge_after=hedge_after)
    assert (done.error, done.took) == (NO, 5)


async def test_who_is_late_gets_company_once(autojump_clock) -> None:
    done = await run((FOREVER, None), (4, None), (0, None), hedge_after=2)
    assert (done.answer, done.took, done.made, done.cancelled) == (1, 6, [(0, 0), (1, 2)], [0])


async def test_the_first_may_still_win(autojump_clock) -> None:
    done = await run((3, None), (4, None), hedge_after=2)
    assert (done.answer, done.took, done.cancelled) == (0, 3, [1])


async def test_one_of_two_fails_and_the_other_is_waited_for(autojump_clock) -> None:
    done = await run((9, None), (1, NO), hedge_after=2)
    assert (done.answer, done.took) == (0, 9)


@pytest.mark.parametrize("finds", ["somebody", None])
async def test_an_answer_does_not_wait_for_what_follows_a_failure(autojump_clock, finds) -> None:
    fates = {"first": (3, NO), "hedge": (2, None), "somebody": (9, None)}

    async def attempt(who):
        seconds, error = fates[who]
        await trio.sleep(seconds)
        if error:
            raise error
        return who

    async def choose(error):
        if error is None:
            return "first" if trio.current_time() == began else "hedge"
        await trio.sleep(0.5 if finds is None else 60)  # a look into the DHT
        return finds

    began = trio.current_time()
    assert await first_answer(attempt, choose, hedge_after=2) == "hedge"
    assert trio.current_time() - began == 4


async def test_nobody_is_asked_beside_who_is_late_where_that_is_not_allowed(autojump_clock) -> None:
    for options in ({"hedge_after": NEVER}, {"hedge_after": 2, "may_hedge": lambda: False}):
        done = await run((5, None), (0, None), **options)
        assert (done.answer, done.took, len(done.made)) == (0, 5, 1)


async def test_cancelling_it_cancels_all_attempts(autojump_clock) -> None:
    ended = []

    async def attempt(who):
        try:
            await trio.sleep_forever()
        finally:
            ended.append(who)

    waiting = iter("ab")

    async def choose(error):
        return next(waiting)

    with trio.move_on_after(5):
        await first_answer(attempt, choose, hedge_after=1)
    assert sorted(ended) == ["a", "b"]


async def test_other_errors_are_not_taken_for_failures_of_a_peer(autojump_clock) -> None:
    with pytest.raises(ZeroDivisionError):
        await run((1, ZeroDivisionError()), (0, None))
    with pytest.raises(ExceptionGroup) as group:
        await run((1, ZeroDivisionError()), (0, None), hedge_after=2)
    assert group.group_contains(ZeroDivisionError)
    with pytest.raises(DialError):
        await run((1, DialError("no")))


def test_late_is_what_lasts_longer_than_nearly_all_of_its_kind() -> None:
    latencies = Latencies()
    for number in range(ENOUGH):
        assert latencies.late_after("ffn.0", 1000) == math.inf
        latencies.add("ffn.0", 1000, 1 + number)
    assert latencies.late_after("ffn.0", 600) == ENOUGH
    assert latencies.late_after("ffn.0", 4000) == latencies.late_after("ffn.1", 1000) == math.inf
    for number in range(WINDOW):
        latencies.add("ffn.0", 1000, number)
    assert latencies.late_after("ffn.0", 1000) == math.ceil(0.95 * WINDOW) - 1
    for number in range(MAX_KINDS):
        latencies.add(f"ffn.{number + 1}", 1000, 1)
    assert latencies.late_after("ffn.0", 1000) == math.inf
    assert repr(latencies) == "<Latencies of 4096 kinds of calls>"


def test_stuck_is_what_lasts_ten_times_as_long_as_the_longest() -> None:
    latencies = Latencies()
    for number in range(ENOUGH):
        assert latencies.stuck_after("ffn.0") == math.inf
        latencies.add("ffn.0", 2**number, 1.5)
    assert latencies.stuck_after("ffn.0") == 15
    for _ in range(200):
        latencies.add("ffn.0", 1000, 0.01)
    assert latencies.stuck_after("ffn.0") == STUCK_AT_LEAST, "what was long ago is forgotten"


def test_a_machine_that_stands_still_for_seconds_is_not_stuck_however_fast_it_was() -> None:
    latencies = Latencies()
    for _ in range(100):
        latencies.add("ffn.0", 1000, 0.001)
    assert latencies.stuck_after("ffn.0") >= 3


def test_hedges_are_few() -> None:
    budget = HedgeBudget()
    for _ in range(100):
        budget.earn()
    assert sum(budget.spend() for _ in range(50)) == 10
    spent = 0
    for _ in range(1000):
        budget.earn()
        spent += budget.spend()
    assert 95 <= spent <= 101
