"""What a DHT node stores under a key: one value, or a dictionary that many peers fill together.

A *regular* record is bytes with an expiration. A *dictionary* record has subkeys, each with bytes and an expiration of
its own: a hundred servers can announce themselves under one key without reading it first. Where the two meet, the
later expiration wins again: a regular value replaces a dictionary all of whose subkeys expire before it, and a subkey
that expires after a regular value replaces that by a new dictionary.

Keys are ids, subkeys and values are bytes: what they mean is the caller's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

from hivemind_p2p.kademlia.ids import NodeID
from hivemind_p2p.kademlia.storage import ExpiringStorage, ValueWithExpiration
from hivemind_p2p.kademlia.verdict import Verdict


class DictionaryValue:
    """Subkeys, each with its own value and expiration.

    Args:
        max_count: the most subkeys.
        max_bytes: the most bytes of subkeys and values together.
    """

    def __init__(self, *, max_count: float = math.inf, max_bytes: float = math.inf) -> None:
        self._items: ExpiringStorage[bytes, bytes] = ExpiringStorage(max_count=max_count, max_bytes=max_bytes)
        self.latest_expiration_time = -math.inf

    def store(self, subkey: bytes, value: bytes, expiration_time: float, *, now: float) -> Verdict:
        """Add or renew a subkey, unless it has expired, is not newer than what we have, or there is no room."""
        stored = self._items.store(subkey, value, expiration_time, now=now, size=len(subkey) + len(value))
        if stored:
            self.latest_expiration_time = max(self.latest_expiration_time, expiration_time)
        return stored

    def merge(self, other: DictionaryValue, *, now: float) -> None:
        """Take over the subkeys of ``other`` that are newer than ours."""
        for subkey, (value, expiration_time) in other.items(now):
            self.store(subkey, value, expiration_time, now=now)

    def get(self, subkey: bytes, now: float) -> ValueWithExpiration[bytes] | None:
        """What is stored for a subkey, unless it has expired."""
        return self._items.get(subkey, now)

    def items(self, now: float) -> Iterator[tuple[bytes, ValueWithExpiration[bytes]]]:
        """Every subkey that has not expired."""
        return self._items.items(now)

    @property
    def nbytes(self) -> int:
        """Bytes of subkeys and values together."""
        return self._items.nbytes

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"<DictionaryValue {len(self)} subkeys, {self.nbytes} bytes>"


Record: TypeAlias = bytes | DictionaryValue


class RecordStorage:
    """The records of one node, by key id; also its cache.

    Args:
        max_count, max_bytes: of all records together.
        max_subkeys, max_record_bytes: of one record; ``max_record_bytes`` bounds regular values and whole dictionaries.
        evict: what to do when full, see :class:`~hivemind_p2p.kademlia.storage.ExpiringStorage`.
    """

    def __init__(
        self,
        *,
        max_count: float = math.inf,
        max_bytes: float = math.inf,
        max_subkeys: float = math.inf,
        max_record_bytes: float = math.inf,
        evict: bool = False,
    ) -> None:
        self.max_subkeys, self.max_record_bytes = max_subkeys, max_record_bytes
        self._records: ExpiringStorage[NodeID, Record] = ExpiringStorage(
            max_count=max_count, max_bytes=max_bytes, evict=evict
        )

    def store(self, key: NodeID, value: bytes, expiration_time: float, *, now: float) -> Verdict:
        """Keep a regular value, unless it is too large, has expired, is not newer than what we have, or no room."""
        if len(value) > self.max_record_bytes:
            return Verdict.TOO_LARGE
        return self._records.store(key, value, expiration_time, now=now, size=len(value))

    def store_subkey(self, key: NodeID, subkey: bytes, value: bytes, expiration_time: float, *, now: float) -> Verdict:
        """Add a subkey to the dictionary of ``key``, which is made when there is none, as in ``store``."""
        previous = self._records.get(key, now)
        if previous is None or isinstance(previous.value, bytes):
            if previous is not None and previous.expiration_time >= expiration_time:
                return Verdict.NOT_NEWER
            dictionary, lasts = self.new_dictionary(), expiration_time
        else:
            dictionary, lasts = previous.value, max(expiration_time, previous.expiration_time)
        # Room is made sure of first: a dictionary that took the subkey could not take it back for want of room.
        size = dictionary.nbytes + len(subkey) + len(value)
        if not self._records.make_room(key, size, lasts, now=now):
            return Verdict.NO_ROOM
        verdict = dictionary.store(subkey, value, expiration_time, now=now)
        if not verdict:
            return Verdict.TOO_LARGE if verdict is Verdict.NO_ROOM else verdict
        return self._records.put(key, dictionary, lasts, now=now, size=dictionary.nbytes)

    def store_record(self, key: NodeID, record: Record, expiration_time: float, *, now: float) -> bool:
        """Keep a record of either kind; every subkey of a dictionary is tried. False: something of it was refused."""
        if isinstance(record, bytes):
            return bool(self.store(key, record, expiration_time, now=now))
        results = [
            self.store_subkey(key, subkey, item.value, item.expiration_time, now=now)
            for subkey, item in record.items(now)
        ]
        return bool(results) and all(results)

    def limit_bytes(self, max_bytes: float, *, now: float) -> None:
        """Set the most bytes of all records; those that expire first go until the others fit."""
        self._records.limit_bytes(max_bytes, now=now)

    def new_dictionary(self) -> DictionaryValue:
        """An empty dictionary within our bounds."""
        return DictionaryValue(max_count=self.max_subkeys, max_bytes=self.max_record_bytes)

    def get(self, key: NodeID, now: float) -> ValueWithExpiration[Record] | None:
        """The record of ``key``, unless it has expired. A dictionary is ours, not a copy: do not write to it."""
        return self._records.get(key, now)

    def discard(self, key: NodeID) -> None:
        """Forget a record, if it is there."""
        self._records.discard(key)

    def items(self, now: float) -> Iterator[tuple[NodeID, ValueWithExpiration[Record]]]:
        """Every record that has not expired."""
        return self._records.items(now)

    @property
    def nbytes(self) -> int:
        """Bytes of all records together."""
        return self._records.nbytes

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"<RecordStorage {len(self)} records, {self.nbytes} bytes>"
