"""Cancelling what is under test at every step that it takes, to see what it leaves behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from trio.abc import Instrument


class _AtStep(Instrument):
    """Cancels a scope once so many steps were made, by whichever tasks of the run."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.left, self._scope = step, scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self._scope.cancel()


async def cancelled_at_each_step(
    operation: Callable[[], Awaitable[object]], afterwards: Callable[[], Awaitable[None]], *, every: int = 1
) -> int:
    """Run ``operation`` again and again: cancelled after one step of any task, after two, and so on, until it ends
    before it is cancelled. What peers do meanwhile is cut at every point, too.

    Args:
        afterwards: looks at what is left; run after each time, with what it must wait for.
        every: how many steps further each time.

    Returns:
        How often it was cancelled.
    """
    step = times = 1
    while True:
        with trio.CancelScope() as scope:
            instrument = _AtStep(step, scope)
            trio.lowlevel.add_instrument(instrument)
            try:
                await operation()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        try:
            await afterwards()
        except AssertionError as error:
            error.add_note(f"cancelled after {step} steps")
            raise
        if instrument.left > 0:
            return times
        step, times = step + every, times + 1
