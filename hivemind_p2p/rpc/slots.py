"""How many calls of one method are served at once, for each peer and in all; more wait in line.

Every method has slots of its own, so that slow methods (experts) do not hold up quick ones (the DHT). A call that waits
has not been read: its request waits in the connection's window, and the connection bounds how many there are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from hivemind_p2p.wire.peer_id import PeerID


class Slots:
    """The slots of one method."""

    def __init__(self, per_peer: int, in_all: int) -> None:
        self._per_peer = per_peer
        self._all = trio.Semaphore(in_all)
        self._peers: dict[PeerID, _PeerSlots] = {}

    @asynccontextmanager
    async def one(self, peer_id: PeerID) -> AsyncIterator[None]:
        """Hold a slot for a call of a peer."""
        mine = self._peers.setdefault(peer_id, _PeerSlots(self._per_peer))
        mine.users += 1
        held: list[trio.Semaphore] = []
        try:
            for semaphore in (mine.free, self._all):
                try:
                    semaphore.acquire_nowait()  # what is free costs no turn of the scheduler
                except trio.WouldBlock:
                    await semaphore.acquire()
                held.append(semaphore)
            yield
        finally:
            for semaphore in held:
                semaphore.release()
            mine.users -= 1
            if not mine.users:
                del self._peers[peer_id]

    def __repr__(self) -> str:
        return f"<Slots, {sum(mine.users for mine in self._peers.values())} calls of {len(self._peers)} peers>"


class _PeerSlots:
    def __init__(self, count: int) -> None:
        self.free = trio.Semaphore(count)
        self.users = 0
        """Calls that hold a slot or wait for one."""
