"""Calls to be made a little later, all of one node in one task: most are called off before their time has come."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from heapq import heappop, heappush

import trio


class Alarm:
    """One call to be made, until it is made or called off."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring: Callable[[], None] | None = ring

    @property
    def over(self) -> bool:
        """Whether it was made, or called off."""
        return self._ring is None

    def call_off(self) -> None:
        """Do not make it. Nothing happens when it was made."""
        self._ring = None

    def ring(self) -> None:
        """Make it."""
        if self._ring is not None:
            ring, self._ring = self._ring, None
            ring()


class Alarms:
    """The calls of one node; :meth:`run` makes them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()
        self._sleep = trio.CancelScope()

    def after(self, seconds: float, ring: Callable[[], None]) -> Alarm:
        """Have ``ring`` called so many seconds from now; it may not wait, and should not fail."""
        alarm, when = Alarm(ring), trio.current_time() + seconds
        heappush(self._heap, (when, next(self._numbers), alarm))
        if when < self._sleep.deadline:
            self._sleep.deadline = when
        return alarm

    async def run(self) -> None:
        """Make the calls, for ever."""
        while True:
            with trio.CancelScope(deadline=self._next()) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._next() <= now:
                heappop(self._heap)[2].ring()

    def __repr__(self) -> str:
        return f"<Alarms, {sum(not alarm.over for _, _, alarm in self._heap)} set>"

    def _next(self) -> float:
        """When the first one is due that was not called off."""
        while self._heap and self._heap[0][2].over:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf
