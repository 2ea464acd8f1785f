"""Storage in which everything expires.

Every entry has an expiration time, and that time is also its version: of two values for a key the one that expires
later is the newer, whichever arrives first. So replicas that hear the same stores in different orders agree in the end,
without clocks that agree better than a few seconds.

Entries expire through a min-heap of ``(expiration, key)``. An entry that was replaced leaves its old pair in the heap
as a ghost, which is skipped when it surfaces; the heap is rebuilt when ghosts outnumber entries, so that storing one
key again and again costs nothing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from hivemind_p2p.kademlia.verdict import Verdict

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ValueWithExpiration(NamedTuple, Generic[V]):
    """A value and when it ends, in seconds of Unix time."""

    value: V
    expiration_time: float


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    expiration_time: float
    size: int


class ExpiringStorage(Generic[K, V]):
    """A bounded map whose entries expire; a later expiration wins.

    Args:
        max_count: the most entries.
        max_bytes: the most of the sizes that ``store`` was told, together.
        evict: when full, drop the entries that expire first to make room for one that expires later (a cache); by
            default, refuse (what was accepted is kept until it expires).
        on_drop: told of every entry that goes, for whatever reason: its key, value and size.
    """

    def __init__(
        self,
        *,
        max_count: float = math.inf,
        max_bytes: float = math.inf,
        evict: bool = False,
        on_drop: Callable[[K, V, int], None] | None = None,
    ) -> None:
        self.max_count, self.max_bytes, self.evict = max_count, max_bytes, evict
        self._on_drop = on_drop
        self._entries: dict[K, _Entry[V]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._pushed = 0  # ties in the heap are broken by age: keys need not be comparable
        self._bytes = 0

    def store(self, key: K, value: V, expiration_time: float, *, now: float, size: int = 0) -> Verdict:
        """Keep ``value`` until ``expiration_time``, unless that has passed, we have one as new, or there is no room."""
        old = self._entries.get(key)
        if not expiration_time > now:
            return Verdict.EXPIRED
        if old is not None and old.expiration_time >= expiration_time:
            return Verdict.NOT_NEWER
        return self.put(key, value, expiration_time, now=now, size=size)

    def put(self, key: K, value: V, expiration_time: float, *, now: float, size: int = 0) -> Verdict:
        """Like ``store``, but in place of whatever is there, newer or not."""
        if not self.make_room(key, size, expiration_time, now=now):
            return Verdict.NO_ROOM
        if key in self._entries:
            self._drop(key)
        self._entries[key] = _Entry(value, expiration_time, size)
        self._bytes += size
        self._push(expiration_time, key)
        return Verdict.STORED

    def make_room(self, key: K, size: int, expiration_time: float, *, now: float) -> bool:
        """Whether an entry for ``key`` fits, once those that expire before it were evicted, if that is our way."""
        self.expire(now)
        if size > self.max_bytes:
            return False
        while True:
            old = self._entries.get(key)
            count = len(self._entries) + (old is None)
            nbytes = self._bytes + size - (old.size if old is not None else 0)
            if count <= self.max_count and nbytes <= self.max_bytes:
                return True
            first = self.first_to_expire()
            if not self.evict or first is None or first[1] >= expiration_time:
                return False
            self._drop(first[0])

    def limit_bytes(self, max_bytes: float, *, now: float) -> None:
        """Set ``max_bytes``; entries that expire first go until the others fit."""
        self.max_bytes = max_bytes
        self.expire(now)
        while self._bytes > max_bytes and (first := self.first_to_expire()) is not None:
            self._drop(first[0])

    def get(self, key: K, now: float) -> ValueWithExpiration[V] | None:
        """What is stored for ``key``, unless it has expired."""
        entry = self._entries.get(key)
        if entry is None or entry.expiration_time <= now:
            return None
        return ValueWithExpiration(entry.value, entry.expiration_time)

    def discard(self, key: K) -> None:
        """Forget a key, if it is there."""
        if key in self._entries:
            self._drop(key)

    def expire(self, now: float) -> None:
        """Drop what has expired."""
        while self._heap and (self._heap[0][0] <= now or self._is_ghost(self._heap[0])):
            item = heapq.heappop(self._heap)
            if not self._is_ghost(item):
                self._drop(item[2])

    def items(self, now: float) -> Iterator[tuple[K, ValueWithExpiration[V]]]:
        """Everything that has not expired."""
        self.expire(now)
        for key, entry in list(self._entries.items()):
            yield key, ValueWithExpiration(entry.value, entry.expiration_time)

    def first_to_expire(self) -> tuple[K, float] | None:
        """The key that expires first, and when (perhaps in the past)."""
        while self._heap and self._is_ghost(self._heap[0]):
            heapq.heappop(self._heap)
        return (self._heap[0][2], self._heap[0][0]) if self._heap else None

    @property
    def nbytes(self) -> int:
        """The sizes of all entries together."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self)} entries, {self.nbytes} bytes>"

    def _is_ghost(self, item: tuple[float, int, K]) -> bool:
        entry = self._entries.get(item[2])
        return entry is None or entry.expiration_time != item[0]

    def _push(self, expiration_time: float, key: K) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (expiration_time, self._pushed, key))
        if len(self._heap) > 2 * len(self._entries) + 16:
            self._heap = [(entry.expiration_time, n, key) for n, (key, entry) in enumerate(self._entries.items())]
            heapq.heapify(self._heap)

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key)
        self._bytes -= entry.size
        if self._on_drop is not None:
            self._on_drop(key, entry.value, entry.size)
