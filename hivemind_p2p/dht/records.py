"""``Records``: what one node keeps, and what it lets in.

What was stored is kept until it expires; copies in the cache are dropped for it when there is no more room. A record
is judged in this order: is it one, do our validators accept it, does its peer have its share already (see
``kademlia.shares``), is it newer than what is there, is there room? Whoever asked is told the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import messages
from hivemind_p2p.dht.keys import DHTID, DICTIONARY_TAG, REGULAR_TAG
from hivemind_p2p.dht.messages import StoreItem
from hivemind_p2p.dht.validation import CompositeValidator, DHTRecord
from hivemind_p2p.kademlia import SHA1, DictionaryValue, RecordStorage, Shares, ValueWithExpiration, Verdict
from hivemind_p2p.kademlia.records import Record
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)


class Records:
    """The storage and the cache of one node.

    Args:
        clock: Unix time in seconds.
        validator: judges every record that comes in.
    """

    def __init__(self, settings: DHTSettings, clock: Callable[[], float], validator: CompositeValidator) -> None:
        self._settings, self._clock, self.validator = settings, clock, validator
        self.storage = self._storage(settings.max_stored_records, evict=False)
        self.cache = self._storage(settings.cache_size, evict=True)
        self._shares: Shares[tuple[DHTID, bytes], PeerID] = Shares(
            max_count=settings.max_stored_records,
            max_bytes=settings.max_stored_bytes,
            max_share=settings.max_peer_share,
        )

    def local(self, key: DHTID) -> ValueWithExpiration[Record] | None:
        """What we have for a key, stored or cached: whichever expires later, or of two dictionaries all subkeys."""
        now = self._clock()
        stored, cached = self.storage.get(key, now), self.cache.get(key, now)
        if stored is None or cached is None:
            return stored if cached is None else cached
        latest = max(stored, cached, key=lambda item: item.expiration_time)
        if not isinstance(stored.value, DictionaryValue) or not isinstance(cached.value, DictionaryValue):
            return latest
        merged = self.storage.new_dictionary()
        merged.merge(stored.value, now=now)
        merged.merge(cached.value, now=now)
        return ValueWithExpiration(merged, latest.expiration_time)

    def accept(self, item: StoreItem, by: PeerID | None) -> Verdict:
        """Store a record, or say why not. Of a dictionary each subkey is tried; the worst that happened is the verdict.

        Args:
            by: the peer that asks for it; None is ourselves.
        """
        try:
            if item.tag == DICTIONARY_TAG:
                return self._accept_dictionary(item, by)
            tag = item.tag if item.tag == REGULAR_TAG else messages.check_tag(item.tag, self._settings)
        except ValueError as error:
            logger.debug("refused what is no record: %s", error)
            return Verdict.MALFORMED
        return self._accept(item, tag, by)

    def valid_part(self, key: DHTID, item: ValueWithExpiration[Record] | None) -> ValueWithExpiration[Record] | None:
        """A record without subkeys that our validators refuse: itself if they accept all, None if nothing is left."""
        if item is None or not len(self.validator):
            return item
        record, expiration_time = item
        if isinstance(record, bytes):
            return item if self._is_valid(key, REGULAR_TAG, record, expiration_time) else None
        now = self._clock()
        entries = list(record.items(now))
        valid = [(tag, entry) for tag, entry in entries if self._is_valid(key, tag, *entry)]
        if len(valid) == len(entries):
            return item
        dictionary = self.storage.new_dictionary()
        for tag, entry in valid:
            dictionary.store(tag, *entry, now=now)
        return ValueWithExpiration(dictionary, dictionary.latest_expiration_time) if valid else None

    def drop_invalid(self) -> None:
        """Forget what our validators do not accept; after new ones came."""
        now = self._clock()
        for storage in (self.storage, self.cache):
            for key, item in list(storage.items(now)):
                valid = self.valid_part(key, item)
                if valid is item:
                    continue
                storage.discard(key)
                if valid is not None:
                    storage.store_record(key, *valid, now=now)

    def __repr__(self) -> str:
        return f"<Records: {len(self.storage)} stored, {len(self.cache)} cached>"

    def _accept_dictionary(self, item: StoreItem, by: PeerID | None) -> Verdict:
        dictionary = messages.unpack_dictionary(item.value, self._settings, self._clock())
        verdicts = {
            self._accept(StoreItem(item.key, tag, *entry, in_cache=item.in_cache), tag, by)
            for tag, entry in dictionary.items(self._clock())
        }
        return max(verdicts, key=lambda verdict: verdict.value, default=Verdict.EXPIRED)

    def _accept(self, item: StoreItem, tag: bytes, by: PeerID | None) -> Verdict:
        if not self._is_valid(item.key, tag, item.value, item.expiration_time):
            return Verdict.INVALID
        now, size = self._clock(), len(tag) + len(item.value)
        if item.expiration_time > now + self._settings.max_lifetime:
            return Verdict.TOO_LASTING
        if item.in_cache:
            return self._put(self.cache, item, tag, now)
        count, nbytes = len(self.storage), self.storage.nbytes
        if by is not None and not self._shares.allow(by, size, count=count, nbytes=nbytes, now=now):
            return Verdict.OVER_SHARE
        before = self.storage.get(item.key, now)
        verdict = self._put(self.storage, item, tag, now)
        if verdict:
            self._count_no_more(item.key, tag, before, now)
            if by is not None:
                self._shares.stored(by, (item.key, tag), size, item.expiration_time, now=now)
            self.cache.limit_bytes(self._settings.max_stored_bytes - self.storage.nbytes, now=now)
        return verdict

    def _count_no_more(self, key: DHTID, tag: bytes, before: ValueWithExpiration[Record] | None, now: float) -> None:
        """What was stored in place of ``before`` has ended somebody's part of it, or, of another kind, all of it."""
        self._shares.discard((key, tag))
        if before is not None and tag == REGULAR_TAG and isinstance(before.value, DictionaryValue):
            for subkey, _ in before.value.items(now):
                self._shares.discard((key, subkey))
        elif before is not None and isinstance(before.value, bytes):
            self._shares.discard((key, REGULAR_TAG))

    @staticmethod
    def _put(storage: RecordStorage, item: StoreItem, tag: bytes, now: float) -> Verdict:
        if tag == REGULAR_TAG:
            return storage.store(item.key, item.value, item.expiration_time, now=now)
        return storage.store_subkey(item.key, tag, item.value, item.expiration_time, now=now)

    def _is_valid(self, key: DHTID, tag: bytes, value: bytes, expiration_time: float) -> bool:
        if not len(self.validator):
            return True
        refused_by = self.validator.refused_by(DHTRecord(SHA1.to_bytes(key), tag, value, expiration_time))
        if refused_by is not None:
            logger.debug("%s refused a record of the key %040x", refused_by, key)
        return refused_by is None

    def _storage(self, max_count: int, *, evict: bool) -> RecordStorage:
        return RecordStorage(
            max_count=max_count,
            max_bytes=self._settings.max_stored_bytes,
            max_subkeys=self._settings.max_subkeys,
            max_record_bytes=self._settings.max_record_bytes,
            evict=evict,
        )
