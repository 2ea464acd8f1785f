"""How long calls take: learned per expert and size, to know when one is late. Pure."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

WINDOW: Final = 128
"""Calls of one kind that are remembered."""
ENOUGH: Final = 16
"""Calls below which nothing is concluded."""
MAX_KINDS: Final = 4096
STUCK_AT_LEAST: Final = 5.0
"""Seconds. A machine that is busy, or swaps, stands still for one or two now and then, and so does a link that loses
packets; who takes that for the end throws away all that its experts have computed."""
_STUCK: Final = 10
_FORGETTING: Final = 0.95


class Latencies:
    """Durations of calls that were answered, by kind: an expert, and the bytes of a call to the next power of two.

    Args:
        percentile: of the last :data:`WINDOW` calls of a kind, above which a call is late.
    """

    def __init__(self, percentile: float = 0.95) -> None:
        self._percentile = percentile
        self._durations: dict[tuple[str, int], deque[float]] = {}
        self._longest: dict[str, tuple[int, float]] = {}  # calls of any size, and how long they take at most, lately

    def add(self, uid: str, nbytes: int, seconds: float) -> None:
        """A call was answered."""
        kind = uid, nbytes.bit_length()
        durations = self._durations.pop(kind, None)
        if durations is None:
            durations = deque(maxlen=WINDOW)
        durations.append(seconds)
        self._durations[kind] = durations  # last used, last forgotten
        count, longest = self._longest.pop(uid, (0, 0.0))
        self._longest[uid] = count + 1, max(seconds, _FORGETTING * longest)
        if len(self._durations) > MAX_KINDS:
            del self._durations[next(iter(self._durations))]
        if len(self._longest) > MAX_KINDS:
            del self._longest[next(iter(self._longest))]

    def late_after(self, uid: str, nbytes: int) -> float:
        """Seconds after which such a call is late; infinite while too little is known."""
        durations = self._durations.get((uid, nbytes.bit_length()), ())
        if len(durations) < ENOUGH:
            return math.inf
        return sorted(durations)[math.ceil(self._percentile * len(durations)) - 1]

    def stuck_after(self, uid: str) -> float:
        """Seconds after which a call of an expert, whatever its size, looks as if it would never end: ten times what
        the longest have taken, and :data:`STUCK_AT_LEAST`; infinite while too little is known."""
        count, longest = self._longest.get(uid, (0, 0.0))
        return max(STUCK_AT_LEAST, _STUCK * longest) if count >= ENOUGH else math.inf

    def __repr__(self) -> str:
        return f"<Latencies of {len(self._durations)} kinds of calls>"


class HedgeBudget:
    """Bounds what hedged requests add to the load of servers, which may be late because they have too much of it.

    Every call earns a part of a hedge, up to a few; every hedge costs one.

    Args:
        share: hedges per call, in the long run.
        most: hedges that can be saved up.
    """

    def __init__(self, share: float = 0.1, most: float = 10.0) -> None:
        self._share, self._most = share, most
        self._saved = most

    def earn(self) -> None:
        """A call was made."""
        self._saved = min(self._most, self._saved + self._share)

    def spend(self) -> bool:
        """Whether one more hedge may be made; it counts as made."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True

    def __repr__(self) -> str:
        return f"<HedgeBudget: {self._saved:.1f} saved>"
