"""Circuit breakers: experts that failed a moment ago are passed over for a while, not asked again with every batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeAlias

from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.errors import ConnectionLost, DeadlineExceeded, DialError
from hivemind_p2p.wire.peer_id import PeerID

AVOID_FIRST: Final = 5.0
AVOID_MOST: Final = 60.0
MAX_REMEMBERED: Final = 4096

_Who: TypeAlias = ExpertInfo | PeerID


class RecentFailures:
    """Who failed, and until when to avoid it: 5 s, doubling with each failure in a row up to a minute.

    What says that a peer is not there counts against all of its experts: ``DialError``, ``ConnectionLost``, a call that
    came too late while the peer answered nothing else; anything else against the one expert. After the pause, the next
    batch is the trial. An expert that moved to another peer is another one. Used by several threads at once.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until: dict[_Who, tuple[float, float]] = {}  # when it ends, and how long it was
        self._answered: dict[PeerID, float] = {}  # when a peer last did

    def add(self, info: ExpertInfo, error: Exception | None = None, *, lasted: float = 0.0) -> None:
        """A call failed, or, without an error or with ``DeadlineExceeded``, came too late.

        Args:
            lasted: seconds for which the peer was waited for.
        """
        now = self._clock()
        whole_peer = isinstance(error, DialError | ConnectionLost)
        if lasted and (error is None or isinstance(error, DeadlineExceeded)):
            whole_peer = self._answered.get(info.peer_id, 0.0) <= now - lasted
        who: _Who = info.peer_id if whole_peer else info
        with self._lock:
            until, pause = self._until.pop(who, (0.0, 0.0))
            if now >= until:  # failures of calls that were in flight together are one
                pause = min(2 * pause, AVOID_MOST) if pause else AVOID_FIRST
            self._until[who] = (now + pause, pause)
            while len(self._until) > MAX_REMEMBERED:
                del self._until[next(iter(self._until))]

    def clear(self, info: ExpertInfo) -> None:
        """A call was answered."""
        with self._lock:
            self._answered.pop(info.peer_id, None)
            self._answered[info.peer_id] = self._clock()
            if len(self._answered) > MAX_REMEMBERED:
                del self._answered[next(iter(self._answered))]
            self._until.pop(info, None)
            self._until.pop(info.peer_id, None)

    def __contains__(self, info: ExpertInfo) -> bool:
        if not self._until:
            return False
        now = self._clock()
        return any(self._until.get(who, (0.0, 0.0))[0] > now for who in (info, info.peer_id))

    def __len__(self) -> int:
        return len(self._until)

    def __repr__(self) -> str:
        now = self._clock()
        with self._lock:
            avoided = sum(until > now for until, _ in self._until.values())
        return f"<RecentFailures: {avoided} avoided now, {len(self._until)} remembered>"
