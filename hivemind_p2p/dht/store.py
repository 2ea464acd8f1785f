"""Storing: every key is to be taken by the ``num_replicas`` nodes nearest to it, ourselves among them unless we are a
client.

Where our table knows everybody near the keys, each of these nodes is given all that it should hold at once, in one
message, and asked in the same message whom it knows nearest to the keys. Only where that was not so - somebody nearer
was named, too few of them told (hivemind's do not), too few took a record - the nodes nearest to the key are looked up,
as for all keys where our table does not know everybody, and those that lack the record are given it.

For a node that fails, or is late, the next nearest is asked. A node that refuses a record because it has a newer one
counts as a replica: it holds the key. One that is full, or refuses it for another reason of its own, does not. Nodes
that were late in the lookup already are not waited for: they would be here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from hivemind_p2p.dht.crawl import Crawl
from hivemind_p2p.dht.keys import DHTID
from hivemind_p2p.dht.messages import PeerContact, StoreItem
from hivemind_p2p.dht.protocol import DHTProtocol, StoreAnswer
from hivemind_p2p.kademlia import Verdict

_HAS_IT = {Verdict.STORED, Verdict.NOT_NEWER, Verdict.UNKNOWN}
"""Answers of nodes that hold the key: hivemind's refuse nothing but what is not newer."""


@dataclass(eq=False)
class _Key:
    """The items of one key, where they may still go, and what became of them."""

    key: DHTID
    items: Sequence[StoreItem]
    candidates: list[PeerContact]
    verdicts: list[Verdict]
    holders: set[PeerContact] = field(default_factory=set)
    awaited: int = 0
    """Nodes that were asked and are not late."""
    failed: bool = False
    """Whether one was late, or did not answer."""
    answered: int = 0
    """Other nodes that did."""
    told: int = 0
    """Of these, how many told whom they know."""
    named: set[DHTID] = field(default_factory=set)
    """Whom they told of."""

    def note(self, contact: PeerContact, verdicts: Sequence[Verdict]) -> None:
        """Take a node's answer in."""
        self.verdicts = [before if before else now for before, now in zip(self.verdicts, verdicts, strict=True)]
        if all(verdict in _HAS_IT for verdict in verdicts):
            self.holders.add(contact)

    def is_settled(self, protocol: DHTProtocol) -> bool:
        """Whether the nodes that have it are the nearest that anybody knows of, as far as we were told."""
        enough = len(self.holders) >= protocol.settings.num_replicas
        if (self.failed and not enough) or 2 * self.told < self.answered:
            return False
        farthest = max((contact.node_id ^ self.key for contact in self.holders), default=0) if enough else 1 << 160
        strangers = (node_id for node_id in self.named if node_id not in protocol.table)
        return not any(node_id ^ self.key < farthest for node_id in strangers if node_id != protocol.own.node_id)

    def start_again(self, candidates: Sequence[PeerContact], replicas: int) -> None:
        """Give it to those of other candidates that do not have it."""
        self.holders.intersection_update(candidates[:replicas])
        self.candidates = [contact for contact in candidates if contact not in self.holders]


async def store_items(
    protocol: DHTProtocol, items: Mapping[DHTID, Sequence[StoreItem]], *, exclude_self: bool
) -> dict[DHTID, list[Verdict]]:
    """Store items by key.

    Returns:
        For each item, in order, whether any node stored it, or why the last one that was asked did not.
    """
    settings, now = protocol.settings, trio.current_time()
    replicas, we_keep = settings.num_replicas, not exclude_self and not protocol.client_mode
    keys = {key: _Key(key, each, [], [Verdict.UNKNOWN] * len(each)) for key, each in items.items()}
    unsettled = keys
    if all(protocol.table.knows_all_near(key, replicas) for key in keys):
        for key, state in keys.items():
            near = protocol.table.nearest(key, settings.bucket_size)
            alive = [contact for contact in near if not protocol.blacklist.passes_over(contact.peer, now)]
            state.candidates = _with_us(protocol, key, alive) if we_keep else alive
        await _Storing(protocol, keys.values(), tell_nearest=replicas).run()
        unsettled = {key: state for key, state in keys.items() if not state.is_settled(protocol)}
    if unsettled:
        crawl = Crawl(protocol, unsettled, wait_for_slow=False, width=settings.search_width, at_once=True)
        await crawl.run()
        for key, state in unsettled.items():
            near = list(crawl.spread(key, replicas))
            state.start_again(_with_us(protocol, key, near) if we_keep else near, replicas)
        await _Storing(protocol, unsettled.values()).run()
    return {key: state.verdicts for key, state in keys.items()}


def _with_us(protocol: DHTProtocol, key: DHTID, contacts: Sequence[PeerContact]) -> list[PeerContact]:
    """Contacts, and ourselves where we belong by our distance."""
    nearer = sum(contact.node_id ^ key < protocol.own.node_id ^ key for contact in contacts)
    return [*contacts[:nearer], protocol.own, *contacts[nearer:]]


class _Storing:
    """Gives keys to nodes until every key has its replicas, or nobody is left to ask."""

    def __init__(self, protocol: DHTProtocol, keys: Collection[_Key], *, tell_nearest: int = 0) -> None:
        self._protocol, self._keys, self._replicas = protocol, keys, protocol.settings.num_replicas
        self._tell_nearest = tell_nearest

    async def run(self) -> None:
        async with trio.open_nursery() as self._nursery:
            self._go_on()

    def _go_on(self) -> None:
        asked = defaultdict[PeerContact, list[_Key]](list)
        for key in self._keys:
            missing = max(self._replicas - len(key.holders) - key.awaited, 0)
            for contact in key.candidates[:missing]:
                asked[contact].append(key)
            key.awaited += len(key.candidates[:missing])
            key.candidates = key.candidates[missing:]
        for contact, keys in asked.items():
            self._nursery.start_soon(self._store_at, contact, keys)
        if all(len(key.holders) >= self._replicas for key in self._keys):
            self._nursery.cancel_scope.cancel()  # who is late is not needed any more

    async def _store_at(self, contact: PeerContact, keys: Sequence[_Key]) -> None:
        items = [item for key in keys for item in key.items]
        asking = _Asking(keys)
        answer: StoreAnswer | None
        if contact == self._protocol.own:
            answer = StoreAnswer([self._protocol.records.accept(item, None) for item in items], {})
        else:
            patience = self._protocol.patience.slow_after(contact.peer)
            alarm = self._protocol.alarms.after(patience, lambda: self._lose_patience(asking))
            try:
                answer = await self._protocol.store(contact.peer, items, tell_nearest=self._tell_nearest)
            finally:
                alarm.call_off()
        asking.end()
        position = 0
        for key in keys:
            verdicts = [] if answer is None else answer.verdicts[position : position + len(key.items)]
            position += len(key.items)
            if answer is None or len(verdicts) < len(key.items):
                key.failed = True
                continue
            key.note(contact, verdicts)
            if contact != self._protocol.own:
                key.answered += 1
                key.told += key.key in answer.nearest
                key.named.update(answer.nearest.get(key.key, ()))
        self._go_on()

    def _lose_patience(self, asking: _Asking) -> None:
        asking.end(late=True)
        self._go_on()


class _Asking:
    """One node that is awaited for some keys, until it answers or is late."""

    def __init__(self, keys: Sequence[_Key]) -> None:
        self._keys = keys

    def end(self, *, late: bool = False) -> None:
        for key in self._keys:
            key.awaited -= 1
            key.failed |= late
        self._keys = ()
