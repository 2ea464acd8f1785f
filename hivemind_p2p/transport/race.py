"""The race for one peer: which address is tried when. Pure: time is passed in.

The rules, in the spirit of RFC 8305 ("Happy Eyeballs"):

1. The first address starts at once.
2. Each next one starts ``stagger`` seconds after the one before, or as soon as any attempt fails.
3. Never more than ``parallel`` attempts are under way.
4. The first attempt to succeed ends the race (the caller stops asking). When none is left and none is under way, it
   is lost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from multiaddr import Multiaddr


@dataclass(frozen=True)
class Start:
    """Start an attempt at this address now, then ask again."""

    maddr: Multiaddr


@dataclass(frozen=True)
class Wait:
    """Do nothing before this time, or before an attempt ends."""

    until: float


@dataclass(frozen=True)
class Lost:
    """No address is left."""


class Race:
    """The state of one race.

    Args:
        maddrs: the addresses, best first; doubles count once.
        stagger: seconds between starts.
        parallel: attempts under way at once.
    """

    def __init__(self, maddrs: Iterable[Multiaddr], *, stagger: float, parallel: int) -> None:
        self._waiting: deque[Multiaddr] = deque()
        self._seen: set[Multiaddr] = set()
        self._running: set[Multiaddr] = set()
        self._stagger: Final = stagger
        self._parallel: Final = parallel
        self._next_start = -math.inf
        self.add(maddrs)

    def add(self, maddrs: Iterable[Multiaddr]) -> None:
        """More addresses became known."""
        for maddr in maddrs:
            if maddr not in self._seen:
                self._seen.add(maddr)
                self._waiting.append(maddr)

    def next(self, now: float) -> Start | Wait | Lost:
        """What to do at time ``now``."""
        if not self._waiting:
            return Wait(math.inf) if self._running else Lost()
        if len(self._running) >= self._parallel:
            return Wait(math.inf)
        if now < self._next_start:
            return Wait(self._next_start)
        maddr = self._waiting.popleft()
        self._running.add(maddr)
        self._next_start = now + self._stagger
        return Start(maddr)

    def failed(self, maddr: Multiaddr) -> None:
        """An attempt failed: the next one need not wait."""
        self._running.discard(maddr)
        self._next_start = -math.inf

    def __repr__(self) -> str:
        return f"<Race: {len(self._running)} under way, {len(self._waiting)} to come>"
