"""What is kept near after a get or a store, and looked up again before it expires.

* What a get found goes into our own cache, and into that of the nodes nearest to the key that did not have it, so that
  a popular key is answered ever farther from its replicas (section 2.3 of the Kademlia paper).
* What we stored goes into our own cache; a dictionary only if part of it is there, since others write to it too.
* What was read from our cache is looked up again shortly before it expires: a key in daily use is always at hand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final

import trio

from hivemind_p2p.dht.keys import DHTID, REGULAR_TAG
from hivemind_p2p.dht.messages import PeerContact, StoreItem, record_item
from hivemind_p2p.dht.protocol import DHTProtocol
from hivemind_p2p.dht.search import Search, Searches
from hivemind_p2p.kademlia import ExpiringStorage, ValueWithExpiration, Verdict
from hivemind_p2p.kademlia.records import Record

logger = logging.getLogger(__name__)
_BATCH: Final = 64


class Caching:
    """The caching policy of one node.

    Args:
        send: stores a record at a peer, some time soon; the peer's answer does not matter.
    """

    def __init__(self, protocol: DHTProtocol, send: Callable[[PeerContact, Sequence[StoreItem]], None]) -> None:
        self._protocol, self._settings, self._send = protocol, protocol.settings, send
        self._to_refresh: ExpiringStorage[DHTID, None] = ExpiringStorage(max_count=self._settings.cache_size)
        self._changed = trio.Event()

    def after_get(self, search: Search, nearest: Sequence[PeerContact]) -> None:
        """A lookup found a value."""
        if search.best is None:
            return
        expiration_time = search.best.expiration_time
        now = self._protocol.clock()
        ours, cached = self._protocol.records.local(search.key), self._protocol.cache.get(search.key, now)
        is_newer = ours is None or ours.expiration_time < expiration_time
        # A dictionary may have news in any of its subkeys, whenever the last of them expires.
        if (is_newer and self._settings.cache_locally) or cached is not None:
            self._keep(search.key, search.best, now)
        if is_newer:
            lacking = [contact for contact in nearest if contact.node_id not in search.holders]
            for contact in lacking[: self._settings.cache_nearest]:
                self._send(contact, [record_item(search.key, search.best, now=now, in_cache=True)])

    def after_store(self, key: DHTID, items: Sequence[StoreItem], verdicts: Sequence[Verdict]) -> None:
        """We stored something under a key; ``verdicts`` say what of it."""
        if not self._settings.cache_on_store:
            return
        now = self._protocol.clock()
        cached = self._protocol.cache.get(key, now)
        for item, ok in zip(items, verdicts, strict=True):
            if item.tag == REGULAR_TAG and ok:
                self._protocol.cache.store(key, item.value, item.expiration_time, now=now)
            elif item.tag == REGULAR_TAG and cached is not None and cached.expiration_time <= item.expiration_time:
                self.refresh_at(key, now)  # others have a newer value: ours is out of date too
            elif item.tag != REGULAR_TAG and cached is not None:
                if ok:
                    self._protocol.cache.store_subkey(key, item.tag, item.value, item.expiration_time, now=now)
                self.refresh_at(key, now)

    def used(self, keys: Collection[DHTID]) -> None:
        """Keys were asked for; those that our cache holds will be looked up again before they expire."""
        before, now = self._settings.cache_refresh_before_expiry, self._protocol.clock()
        for key in keys if before else ():
            cached = self._protocol.cache.get(key, now)
            if cached is not None:
                self.refresh_at(key, cached.expiration_time - before)

    def refresh_at(self, key: DHTID, time: float) -> None:
        """Look a key up again at ``time``, or now if that has passed. Nothing happens when too many keys wait."""
        planned = self._to_refresh.get(key, -1.0)
        if planned is not None and planned.expiration_time <= self._protocol.clock():
            return  # it is about to be looked up: no use of the key may put that off
        first = self._to_refresh.first_to_expire()
        self._to_refresh.put(key, None, time, now=-1.0)
        if first is None or time < first[1]:
            self._changed.set()

    async def run(self, searches: Searches) -> None:
        """Refresh what is due, for ever."""
        while True:
            self._changed = trio.Event()
            first = self._to_refresh.first_to_expire()
            wait = float("inf") if first is None else max(0.0, first[1] - self._protocol.clock())
            with trio.move_on_after(wait):
                await self._changed.wait()
            try:
                await self._refresh(self._due(), searches)
            except Exception:
                logger.exception("refreshing the cache failed; it goes on with the next keys")

    def __repr__(self) -> str:
        return f"<Caching, {len(self._to_refresh)} keys to refresh>"

    def _keep(self, key: DHTID, found: ValueWithExpiration[Record], now: float) -> None:
        """Into our cache, but for what lasts longer than records may: nobody could replace it there."""
        cache, until = self._protocol.cache, now + self._settings.max_lifetime
        record, expiration_time = found
        if isinstance(record, bytes):
            if expiration_time <= until:
                cache.store(key, record, expiration_time, now=now)
            return
        for subkey, item in record.items(now):
            if item.expiration_time <= until:
                cache.store_subkey(key, subkey, item.value, item.expiration_time, now=now)

    def _due(self) -> list[DHTID]:
        now, due = self._protocol.clock(), list[DHTID]()
        while len(due) < _BATCH and (first := self._to_refresh.first_to_expire()) is not None and first[1] <= now:
            self._to_refresh.discard(first[0])
            due.append(first[0])
        return due

    async def _refresh(self, keys: Sequence[DHTID], searches: Searches) -> None:
        if not keys:
            return
        now = self._protocol.clock()
        cached = [item.expiration_time for key in keys if (item := self._protocol.cache.get(key, now)) is not None]
        # A value that would have to be refreshed at once again is not sufficient.
        sufficient = max(cached, default=now) + self._settings.cache_refresh_before_expiry
        await searches.get_many(keys, sufficient, use_cache=False)
