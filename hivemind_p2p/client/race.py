"""One request, several attempts: a later one when an earlier one failed, or is late. Knows no network."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final, Generic, NamedTuple, TypeVar

import trio

from hivemind_p2p.errors import HivemindError

_Who = TypeVar("_Who")
_Answer = TypeVar("_Answer")
NEVER: Final = math.inf


class _Ended(NamedTuple, Generic[_Answer]):
    answer: _Answer | None
    error: HivemindError | None


async def first_answer(
    attempt: Callable[[_Who], Awaitable[_Answer]],
    choose: Callable[[HivemindError | None], Awaitable[_Who | None]],
    *,
    hedge_after: float = NEVER,
    may_hedge: Callable[[], bool] = lambda: True,
) -> _Answer:
    """The first answer of several attempts, the others of which are cancelled.

    One attempt is under way most of the time: the next one follows when it fails. A *hedge*, one second attempt beside
    it, is made when the first has lasted for longer than nearly all do (Dean and Barroso, "The Tail at Scale", 2013).

    Args:
        attempt: asks somebody.
        choose: says whom to ask: first, and beside who is late (with None), or after an error; None: nobody.
        hedge_after: seconds after which the first attempt is late; :data:`NEVER` for what must not be done twice.
        may_hedge: asked before a hedge.

    Raises:
        HivemindError: that of the first attempt, when all have failed.
    """
    first = await choose(None)
    assert first is not None, "there is always somebody to ask first"
    if hedge_after == NEVER:
        return await _one_after_the_other(attempt, choose, first)
    ended, whats_ended = trio.open_memory_channel[_Ended[_Answer] | None](math.inf)
    failure: HivemindError | None = None

    async def make(who: _Who) -> None:
        try:
            answer = await attempt(who)
        except HivemindError as error:
            ended.send_nowait(_Ended(None, error))
        else:
            ended.send_nowait(_Ended(answer, None))

    async def follow(error: HivemindError) -> None:
        """Make another attempt; what is under way may be answered while it is looked for."""
        other = await choose(error)
        if other is not None:
            await make(other)
        else:
            ended.send_nowait(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make, first)
        under_way, patience = 1, hedge_after
        while under_way:
            outcome, other = None, None
            with trio.move_on_after(patience) as waiting:
                outcome = await whats_ended.receive()
            if waiting.cancelled_caught:
                patience = NEVER
                other = await choose(None) if may_hedge() else None
            elif outcome is None:
                under_way -= 1
            elif outcome.error is None:
                nursery.cancel_scope.cancel()
                return outcome.answer  # type: ignore[return-value]  # there was no error
            else:
                failure = failure or outcome.error
                if under_way > 1:
                    nursery.start_soon(follow, outcome.error)
                else:
                    under_way -= 1
                    other = await choose(outcome.error)
            if other is not None:
                under_way += 1
                nursery.start_soon(make, other)
    assert failure is not None
    raise failure


async def _one_after_the_other(
    attempt: Callable[[_Who], Awaitable[_Answer]],
    choose: Callable[[HivemindError | None], Awaitable[_Who | None]],
    who: _Who | None,
) -> _Answer:
    """Without hedges all attempts are made by the task that waits for them, which is cheaper by a nursery."""
    failure: HivemindError | None = None
    while who is not None:
        try:
            return await attempt(who)
        except HivemindError as error:
            failure = failure or error
            who = await choose(error)
    assert failure is not None
    raise failure
