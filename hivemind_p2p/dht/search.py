"""Finding values: ``Searches`` answers gets from what we have, from lookups under way, and from new lookups.

A get is satisfied by any value that expires late enough. While none is found, its lookup goes on to the nodes nearest
to the key, and then the value that expires last is the answer; dictionaries from several peers are merged. The latest
value is what the ``num_replicas`` nearest nodes, ourselves among them, all have; if they do not agree, twice as many
are heard. Lookups belong to the node, not to a caller: several callers may wait for one, and it ends when the last of
them has given up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import trio

from hivemind_p2p.dht.crawl import Crawl
from hivemind_p2p.dht.keys import DHTID
from hivemind_p2p.dht.messages import FindAnswer, PeerContact
from hivemind_p2p.dht.protocol import DHTProtocol
from hivemind_p2p.errors import NodeClosed
from hivemind_p2p.kademlia import DictionaryValue, ValueWithExpiration
from hivemind_p2p.kademlia.records import Record


class Search:
    """The search for one key: the best value so far, and whoever waits for it.

    Args:
        sufficient: a value that expires no earlier than this ends the search.
        new_dictionary: makes an empty dictionary within our bounds.
    """

    def __init__(self, key: DHTID, sufficient: float, new_dictionary: Callable[[], DictionaryValue]) -> None:
        self.key, self.sufficient = key, sufficient
        self.best: ValueWithExpiration[Record] | None = None
        self.holders: dict[DHTID, ValueWithExpiration[Record]] = {}
        """Nodes that have a value for the key, and which."""
        self.finished = trio.Event()
        self.closed = False
        """Whether it ended because the node was closed, not because it was through."""
        self.waiting = 0
        self._new_dictionary = new_dictionary

    @property
    def satisfied(self) -> bool:
        """Whether the best value will do."""
        return self.best is not None and self.best.expiration_time >= self.sufficient

    def agreed(self, nodes: Iterable[DHTID], ours: ValueWithExpiration[Record] | None, now: float) -> bool:
        """Whether nodes that answered all have the best value. If we keep it, one need not: we are a replica, too."""
        if self.best is None:
            return False
        best = _contents(self.best, now)
        lacking = [node for node in nodes if node not in self.holders]
        kept_here = ours is not None and _contents(ours, now) == best
        values = [self.holders[node] for node in nodes if node in self.holders]
        return len(lacking) <= kept_here and all(_contents(value, now) == best for value in values)

    def offer(self, found: ValueWithExpiration[Record] | None, now: float) -> None:
        """Take a value into account. Dictionaries are merged into a new one: those offered are of their owners."""
        if found is None:
            return
        if self.best is None:
            self.best = found
        elif isinstance(self.best.value, DictionaryValue) and isinstance(found.value, DictionaryValue):
            merged = self._new_dictionary()
            merged.merge(self.best.value, now=now)
            merged.merge(found.value, now=now)
            self.best = ValueWithExpiration(merged, max(self.best.expiration_time, found.expiration_time))
        elif found.expiration_time > self.best.expiration_time:
            self.best = found


def _contents(found: ValueWithExpiration[Record], now: float) -> object:
    """What makes two values the same, wherever they are from."""
    record, expiration_time = found
    return found if isinstance(record, bytes) else (dict(record.items(now)), expiration_time)


class Searches:
    """All gets of one node.

    Args:
        nursery: owns the lookups.
        on_found: told of every value that a lookup found: the search, and the nodes nearest to its key.
    """

    def __init__(
        self,
        protocol: DHTProtocol,
        nursery: trio.Nursery,
        on_found: Callable[[Search, Sequence[PeerContact]], None],
    ) -> None:
        self._protocol, self._nursery, self._on_found = protocol, nursery, on_found
        self._under_way: dict[DHTID, list[tuple[Search, Crawl]]] = {}

    async def get_many(
        self, keys: Iterable[DHTID], sufficient: float, *, use_cache: bool = True
    ) -> dict[DHTID, ValueWithExpiration[Record] | None]:
        """The values of keys; None for those that nobody has.

        Args:
            sufficient: the first value that expires no earlier than this will do; infinity asks for the latest.
            use_cache: whether our own cache counts.

        Raises:
            NodeClosed: the node was closed meanwhile.
        """
        searches: dict[DHTID, Search] = {}
        new: dict[DHTID, Search] = {}
        for key in dict.fromkeys(keys):
            search = Search(key, sufficient, self._protocol.storage.new_dictionary)
            self._offer_ours(search, use_cache)
            if search.satisfied:
                search.finished.set()
            else:
                shared = self._shared(search) if use_cache else None
                if shared is None:
                    new[key] = search
                else:
                    if search.best is not None:  # it may have come here since that search began
                        shared.offer(search.best, self._protocol.clock())
                    search = shared
            searches[key] = search
        if new:
            self._start(new)
        await self._wait(searches.values())
        if any(search.closed for search in searches.values()):
            raise NodeClosed("the DHT node was closed while it looked for a key; nothing is known of it")
        return {key: search.best for key, search in searches.items()}

    def __repr__(self) -> str:
        return f"<Searches for {len(self._under_way)} keys under way>"

    def _offer_ours(self, search: Search, use_cache: bool) -> None:
        now = self._protocol.clock()
        search.offer(self._protocol.storage.get(search.key, now), now)
        if use_cache:
            search.offer(self._protocol.cache.get(search.key, now), now)

    def _shared(self, wanted: Search) -> Search | None:
        """A search under way that asks for no less than ``wanted``."""
        if not self._protocol.settings.reuse_get_requests:
            return None
        under_way = (search for search, _ in self._under_way.get(wanted.key, ()))
        return next((search for search in under_way if search.sufficient >= wanted.sufficient), None)

    def _start(self, searches: Mapping[DHTID, Search]) -> None:
        storage, settings = self._protocol.storage, self._protocol.settings

        def on_answer(contact: PeerContact, answer: FindAnswer) -> list[DHTID]:
            now = self._protocol.clock()
            for key, found in answer.found.items():
                if found.record is not None:
                    searches[key].holders[answer.node_id] = found.record
                    searches[key].offer(found.record, now)
            return [key for key in answer.found if searches[key].satisfied]

        def content(key: DHTID, answered: Sequence[PeerContact]) -> bool:
            now = self._protocol.clock()
            return searches[key].agreed([contact.node_id for contact in answered], storage.get(key, now), now)

        def on_finished(key: DHTID) -> None:
            self._finish(searches[key], crawl)

        latest = all(math.isinf(search.sufficient) for search in searches.values())
        known = all(map(self._knows_whom_to_ask, searches))
        crawl = Crawl(
            self._protocol,
            searches,
            on_answer=on_answer,
            on_finished=on_finished,
            width=settings.search_width,
            at_once=latest,
            gently=known and not latest,
            narrow=settings.num_replicas if latest else 0,
            content=content,
            tell_nearest=settings.num_replicas if known else 0,
        )
        for key, search in searches.items():
            self._under_way.setdefault(key, []).append((search, crawl))
        self._nursery.start_soon(self._run, searches, crawl)

    def _knows_whom_to_ask(self, key: DHTID) -> bool:
        table, patience = self._protocol.table, self._protocol.patience
        if not table.knows_all_near(key, self._protocol.settings.num_replicas):
            return False
        return all(patience.hedge_after(contact.peer) is not None for contact in table.nearest(key, 1))

    async def _run(self, searches: Mapping[DHTID, Search], crawl: Crawl) -> None:
        try:
            await crawl.run()
        finally:
            for search in searches.values():
                if not search.finished.is_set():  # the node is being closed under us
                    search.closed = True
                    search.finished.set()

    def _finish(self, search: Search, crawl: Crawl) -> None:
        others = [item for item in self._under_way.pop(search.key) if item[0] is not search]
        if others:
            self._under_way[search.key] = others
        search.finished.set()
        if search.best is not None:
            self._on_found(search, crawl.nearest(search.key))
            for other, its_crawl in others:
                other.offer(search.best, self._protocol.clock())
                if other.satisfied:
                    its_crawl.finish(search.key)

    async def _wait(self, searches: Collection[Search]) -> None:
        for search in searches:
            search.waiting += 1
        try:
            for search in searches:
                await search.finished.wait()
        finally:
            for search in searches:
                search.waiting -= 1
                if not search.waiting and not search.finished.is_set():
                    self._give_up(search)

    def _give_up(self, search: Search) -> None:
        for candidate, crawl in list(self._under_way.get(search.key, ())):
            if candidate is search:
                crawl.finish(search.key)
