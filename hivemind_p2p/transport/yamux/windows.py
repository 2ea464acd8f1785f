"""Receive windows: how much a peer may send on a stream before we have read it. Pure: time is passed in.

1. A stream begins with 256 KiB, as the specification has it, or with what the connection's earlier streams grew to,
   up to 1 MiB: calls are short streams, and each of them would otherwise begin slowly anew.
2. What was read is given back once it makes up a quarter of the window: what is not given back yet is missing to a
   sender far away.
3. A window that is used quickly (a quarter of it within two round trips) may be what holds the sender back, and
   doubles, up to ``max_window``.
4. The windows of all streams together stay below ``budget`` as far as that is ours to say: none grows beyond it, but
   the first 256 KiB of a stream are the peer's by right.
5. So what the peer makes us hold is bounded by counting it: all streams together hold at most ``budget`` unread.
"""

from __future__ import annotations

from typing import Final

from hivemind_p2p.transport.yamux.frames import INITIAL_WINDOW

_LARGEST_START: Final = 1 << 20
_QUICK_ROUND_TRIPS: Final = 2
_GIVEN_BACK: Final = 4
"""What part of a window is given back at least."""
_SHORTEST_ROUND_TRIP: Final = 0.01
"""Below this, what is measured is how busy the two processes are."""


class WindowBudget:
    """What the receive windows of one connection share.

    Args:
        max_window: the largest window of one stream, in bytes.
        budget: the most unread bytes of all streams.
    """

    __slots__ = ("budget", "granted", "held", "max_window", "rtt", "start")

    def __init__(self, *, max_window: int, budget: int) -> None:
        self.max_window = max(max_window, INITIAL_WINDOW)
        self.budget = budget
        self.granted = 0
        """The windows of all open streams."""
        self.held = 0
        """Bytes received and not read yet."""
        self.start = INITIAL_WINDOW
        """The window that the next stream begins with, if there is room for it."""
        self.rtt = 0.0
        """Seconds of a round trip; 0 before it was measured."""

    def room(self, more: int) -> bool:
        """Whether the windows may grow by this much."""
        return self.granted + more <= self.budget


class ReceiveWindow:
    """The receive window of one stream."""

    __slots__ = ("_budget", "_credit", "_updated_at", "held", "left", "size")

    def __init__(self, budget: WindowBudget, now: float) -> None:
        self._budget = budget
        self._updated_at = now
        self._credit = 0
        self.held = 0
        """Bytes of this stream received and not read yet."""
        self.size = budget.start if budget.room(budget.start) else INITIAL_WINDOW
        self.left = self.size
        """Bytes that the peer may send now."""
        budget.granted += self.size

    def hold(self, size: int) -> bool:
        """Bytes came; whether there is room to hold them."""
        self.held += size
        self._budget.held += size
        return self._budget.held <= self._budget.budget

    def consumed(self, size: int, now: float) -> int:
        """Bytes were read; by how much to open the window now."""
        self.held -= size
        self._budget.held -= size
        self._credit += size
        if not self.size or _GIVEN_BACK * self._credit < self.size:
            return 0
        grant = self._credit + self._growth(now)
        self._credit = 0
        self._updated_at = now
        self.left += grant
        return grant

    def release(self) -> None:
        """The peer can send nothing more: its window is free for others."""
        self._budget.granted -= self.size
        self.size = 0

    def drop(self) -> None:
        """What was held is thrown away."""
        self._budget.held -= self.held
        self.held = 0

    def _growth(self, now: float) -> int:
        budget = self._budget
        quick = _QUICK_ROUND_TRIPS * max(budget.rtt, _SHORTEST_ROUND_TRIP)
        growth = min(self.size, budget.max_window - self.size)
        if now - self._updated_at > quick or growth <= 0 or not budget.room(growth):
            return 0
        self.size += growth
        budget.granted += growth
        budget.start = max(budget.start, min(self.size, _LARGEST_START))
        return growth
