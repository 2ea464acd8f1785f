"""How many bytes of requests one peer may make us hold; what would be more waits, unread, in the connection's window.

A message takes its whole length before it is read, so that what is half read can always be finished: peers wait for
themselves alone, and nobody waits for ever. Small messages are free: the number of calls bounds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from hivemind_p2p.wire.peer_id import PeerID


class _Account:
    """What one peer holds."""

    def __init__(self) -> None:
        self.held = self.shares = 0
        self.changed = trio.Event()

    def give_back(self, size: int) -> None:
        self.held -= size
        self.changed.set()
        self.changed = trio.Event()


class Share:
    """What one call holds."""

    def __init__(self, account: _Account, limit: int) -> None:
        self._account, self._limit = account, limit
        self.held = 0

    async def take(self, size: int) -> None:
        """Hold so many bytes more, once there is room; one message of any size always finds room in the end."""
        while self._account.held and self._account.held + size > self._limit:
            await self._account.changed.wait()
        self._account.held += size
        self.held += size

    def give_back(self, size: int) -> None:
        """Hold so many bytes less, if we hold that many."""
        size = min(size, self.held)
        self.held -= size
        self._account.give_back(size)


class ByteBudget:
    """The budgets of all peers.

    Args:
        per_peer: bytes that each may hold.
    """

    def __init__(self, per_peer: int) -> None:
        self._per_peer = per_peer
        self._accounts: dict[PeerID, _Account] = {}

    @contextmanager
    def share(self, peer_id: PeerID) -> Iterator[Share]:
        """For one call of a peer; what it holds at the end is given back."""
        account = self._accounts.setdefault(peer_id, _Account())
        account.shares += 1
        share = Share(account, self._per_peer)
        try:
            yield share
        finally:
            share.give_back(share.held)
            account.shares -= 1
            if not account.shares:
                del self._accounts[peer_id]

    def __repr__(self) -> str:
        held = sum(account.held for account in self._accounts.values())
        return f"<ByteBudget, {held} bytes for {len(self._accounts)} peers>"
