"""Accepted connections whose handshake is under way: so many, and no IP address keeps the others out.

Who connects and says nothing holds a place for as long as a handshake may take. So when all are held, the address that
holds the most of them loses its oldest one to a newcomer from elsewhere; its own newcomers are sent away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Handshakes:
    """The handshakes of one host.

    Args:
        most: at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way: dict[trio.CancelScope, str] = {}  # the oldest first

    @contextmanager
    def one(self, ip: str) -> Iterator[bool]:
        """A block for one more, which is cancelled if it must make room; whether there is room for it.

        Args:
            ip: where it comes from; empty: not known.
        """
        if len(self._under_way) >= self._most and not self._make_room(ip):
            yield False
            return
        with trio.CancelScope() as scope:
            self._under_way[scope] = ip
            try:
                yield True
            finally:
                self._under_way.pop(scope, None)

    def _make_room(self, ip: str) -> bool:
        [(busiest, held)] = Counter(self._under_way.values()).most_common(1)
        if held < 2 or busiest == ip:
            return False
        oldest = next(scope for scope, each in self._under_way.items() if each == busiest)
        del self._under_way[oldest]
        oldest.cancel()
        return True

    def __len__(self) -> int:
        return len(self._under_way)

    def __repr__(self) -> str:
        return f"<Handshakes, {len(self._under_way)} of {self._most}>"
