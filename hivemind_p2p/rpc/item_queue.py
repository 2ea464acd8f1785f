"""Items that were received and not asked for yet: so many, of so many bytes, and no more."""

from __future__ import annotations

from collections import deque

import trio


class ItemQueue:
    """One task puts, one gets. A put waits while the queue is full.

    Args:
        max_items, max_bytes: what it may hold; one item of any size always finds room.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._items: deque[bytearray] = deque()
        self._bytes = 0
        self.ended = False
        """Whether no more items come."""
        self._failure: Exception | None = None
        self._changed = trio.Event()

    async def put(self, item: bytearray) -> None:
        """Add an item once there is room."""
        while self._items and (len(self._items) >= self._max_items or self._bytes + len(item) > self._max_bytes):
            await self._change()
        self._items.append(item)
        self._bytes += len(item)
        self._wake()

    @property
    def complete(self) -> bool:
        """Whether all items came, and then their end."""
        return self.ended and self._failure is None

    def end(self, failure: Exception | None = None) -> None:
        """No more items come; once the others are taken, ``failure`` is raised."""
        self.ended, self._failure = True, failure
        self._wake()

    async def get(self) -> bytearray | None:
        """The next item; None at the end.

        Raises:
            Whatever :meth:`end` was given.
        """
        while not self._items:
            if self._failure is not None:
                raise self._failure
            if self.ended:
                return None
            await self._change()
        item = self._items.popleft()
        self._bytes -= len(item)
        self._wake()
        return item

    async def _change(self) -> None:
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
