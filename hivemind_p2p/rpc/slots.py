"""How many calls of one method are served at once, for each peer and in all; more wait in line.

Every method has slots of its own, so that slow methods (experts) do not hold up quick ones (the DHT). A call that waits
has not been read: its request waits in the connection's window, and the connection bounds how many there are.
"""

from __future__ import annotations

from types import TracebackType

import trio

from hivemind_p2p.wire.peer_id import PeerID


class Slots:
    """The slots of one method."""

    def __init__(self, per_peer: int, in_all: int) -> None:
        self._per_peer = per_peer
        self._all = trio.Semaphore(in_all)
        self._peers: dict[PeerID, _PeerSlots] = {}

    def one(self, peer_id: PeerID) -> Slot:
        """A slot for a call of a peer, which is held inside ``async with``."""
        return Slot(self, peer_id)

    async def take(self, peer_id: PeerID) -> None:
        """Wait for a slot and hold it."""
        mine = self._peers.get(peer_id)
        if mine is None:
            mine = self._peers[peer_id] = _PeerSlots(self._per_peer)
        mine.users += 1
        held: list[trio.Semaphore] = []
        try:
            for semaphore in (mine.free, self._all):
                if semaphore.value:
                    semaphore.acquire_nowait()  # what is free costs no turn of the scheduler
                else:
                    await semaphore.acquire()
                held.append(semaphore)
        except BaseException:
            self._leave(peer_id, held)
            raise

    def take_nowait(self, peer_id: PeerID) -> bool:
        """Hold a slot if one is free; whether it is."""
        mine = self._peers.get(peer_id)
        if not self._all.value or (mine is not None and not mine.free.value):
            return False
        if mine is None:
            mine = self._peers[peer_id] = _PeerSlots(self._per_peer)
        mine.users += 1
        mine.free.acquire_nowait()
        self._all.acquire_nowait()
        return True

    def give_back(self, peer_id: PeerID) -> None:
        """Hold it no longer."""
        self._leave(peer_id, [self._peers[peer_id].free, self._all])

    def _leave(self, peer_id: PeerID, held: list[trio.Semaphore]) -> None:
        for semaphore in held:
            semaphore.release()
        mine = self._peers[peer_id]
        mine.users -= 1
        if not mine.users:
            del self._peers[peer_id]

    def __repr__(self) -> str:
        return f"<Slots, {sum(mine.users for mine in self._peers.values())} calls of {len(self._peers)} peers>"


class Slot:
    """One slot. A plain class: it is passed by every call, and a generator costs more than what it does."""

    def __init__(self, slots: Slots, peer_id: PeerID) -> None:
        self._slots, self._peer_id = slots, peer_id

    async def __aenter__(self) -> None:
        await self._slots.take(self._peer_id)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slots.give_back(self._peer_id)


class _PeerSlots:
    def __init__(self, count: int) -> None:
        self.free = trio.Semaphore(count)
        self.users = 0
        """Calls that hold a slot or wait for one."""
