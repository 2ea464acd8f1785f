"""How many bytes of requests one peer may make us hold; what would be more waits, unread, in the connection's window.

A message takes its whole length before it is read, so that what is half read can always be finished: peers wait for
themselves alone, and nobody waits for ever. Small messages are free: the number of calls bounds them.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

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
    """What one call holds, inside ``with``."""

    def __init__(self, budget: ByteBudget, peer_id: PeerID, account: _Account, limit: int) -> None:
        self._budget, self._peer_id = budget, peer_id
        self._account, self._limit = account, limit
        self.held = 0

    def __enter__(self) -> Self:
        self._account.shares += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.held:
            self.give_back(self.held)
        self._account.shares -= 1
        if not self._account.shares:
            self._budget.forget(self._peer_id)

    async def take(self, size: int) -> None:
        """Hold so many bytes more, once there is room; one message of any size always finds room in the end."""
        while not self.take_nowait(size):
            await self._account.changed.wait()

    def take_nowait(self, size: int) -> bool:
        """Hold so many bytes more if there is room; whether there is."""
        if self._account.held and self._account.held + size > self._limit:
            return False
        self._account.held += size
        self.held += size
        return True

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

    def share(self, peer_id: PeerID) -> Share:
        """For one call of a peer; what it holds at the end of the ``with`` is given back."""
        account = self._accounts.get(peer_id)
        if account is None:
            account = self._accounts[peer_id] = _Account()
        return Share(self, peer_id, account, self._per_peer)

    def forget(self, peer_id: PeerID) -> None:
        """The last call of a peer has ended."""
        del self._accounts[peer_id]

    def __repr__(self) -> str:
        held = sum(account.held for account in self._accounts.values())
        return f"<ByteBudget, {held} bytes for {len(self._accounts)} peers>"
