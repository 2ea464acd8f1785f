"""Whose records fill a store, so that one peer cannot take the room of all.

While there is plenty of room everybody may use it. Once the store is more than half full, whoever has more than its
share of the whole is refused more, until its records expire.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hivemind_p2p.kademlia.storage import ExpiringStorage

K = TypeVar("K", bound=Hashable)
O = TypeVar("O", bound=Hashable)  # noqa: E741 an owner
_PLENTY = 0.5


@dataclass(slots=True)
class _Share:
    count: int = 0
    nbytes: int = 0


class Shares(Generic[K, O]):
    """What each owner has in a store.

    Args:
        max_count, max_bytes: of the store.
        max_share: the part of either that one owner may fill when room is scarce.
    """

    def __init__(self, *, max_count: float, max_bytes: float, max_share: float) -> None:
        self.max_count, self.max_bytes, self.max_share = max_count, max_bytes, max_share
        self._shares: defaultdict[O, _Share] = defaultdict(_Share)
        self._entries: ExpiringStorage[K, O] = ExpiringStorage(on_drop=self._dropped)

    def allow(self, owner: O, size: int, *, count: int, nbytes: int, now: float) -> bool:
        """Whether ``owner`` may store ``size`` bytes more in a store that holds ``count`` entries of ``nbytes``."""
        self._entries.expire(now)
        if count <= _PLENTY * self.max_count and nbytes <= _PLENTY * self.max_bytes:
            return True
        share = self._shares.get(owner, _Share())
        return (
            share.count + 1 <= self.max_share * self.max_count
            and share.nbytes + size <= self.max_share * self.max_bytes
        )

    def stored(self, owner: O, key: K, size: int, expiration_time: float, *, now: float) -> None:
        """``owner`` has stored an entry, in place of whoever had one under ``key``."""
        self._entries.put(key, owner, expiration_time, now=now, size=size)
        share = self._shares[owner]
        share.count += 1
        share.nbytes += size

    def discard(self, key: K) -> None:
        """The entry under ``key`` is no more, before its time; nothing happens when there was none."""
        self._entries.discard(key)

    def __repr__(self) -> str:
        return f"<Shares of {len(self._shares)} owners in {len(self._entries)} entries>"

    def _dropped(self, key: K, owner: O, size: int) -> None:
        share = self._shares[owner]
        share.count -= 1
        share.nbytes -= size
        if not share.count:
            del self._shares[owner]
