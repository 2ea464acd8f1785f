"""What is on its way to one peer, and comes when its time has come.

One task per network delivers everything: pieces of streams, streams that are opened, goodbyes. It sleeps until the
first of them is due, so that a message costs a swarm of thousands one turn of the clock and one task.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from hivemind_p2p.testing.connection import MemoryConnection


class Mail:
    """What is to happen at some time; what is to happen at one time does in the order in which it was posted."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, MemoryConnection, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._sleep = trio.CancelScope()

    def post(self, when: float, connection: MemoryConnection, arrive: Callable[[], None]) -> None:
        """Have ``arrive`` come to this end of a connection at ``when``."""
        heappush(self._heap, (when, next(self._numbers), connection, arrive))
        if when < self._sleep.deadline:
            self._sleep.deadline = when

    async def run(self) -> None:
        """Deliver, for ever."""
        heap = self._heap
        while True:
            with trio.CancelScope(deadline=heap[0][0] if heap else math.inf) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            while heap and heap[0][0] <= now:
                _, _, connection, arrive = heappop(heap)
                connection.came(arrive)

    def __repr__(self) -> str:
        return f"<Mail, {len(self._heap)} on their way>"
