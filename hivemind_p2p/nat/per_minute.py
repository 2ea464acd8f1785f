"""So many requests in a minute, of all peers together and of each. Pure: time is passed in."""

from __future__ import annotations

from collections import deque
from typing import Final

from hivemind_p2p.wire.peer_id import PeerID

_SHARE: Final = 10


class PerMinute:
    """Counts what is done for others.

    Args:
        most: in a minute, for all peers.
        of_each: for one of them; default: a tenth of it.
    """

    def __init__(self, most: int, *, of_each: int | None = None) -> None:
        self._most = most
        self._of_each = max(1, most // _SHARE) if of_each is None else of_each
        self._served: deque[tuple[float, PeerID]] = deque()

    def admits(self, peer_id: PeerID, now: float) -> bool:
        """Whether one more may be done now; then it is counted."""
        while self._served and now - self._served[0][0] > 60:
            self._served.popleft()
        of_this_peer = sum(peer == peer_id for _, peer in self._served)
        if len(self._served) >= self._most or of_this_peer >= self._of_each:
            return False
        self._served.append((now, peer_id))
        return True

    def __repr__(self) -> str:
        return f"<PerMinute, {len(self._served)} of {self._most}>"
