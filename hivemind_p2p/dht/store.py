"""Storing: find the nodes nearest to each key, and give each node all that it should hold in one message.

Every key is to be taken by ``num_replicas`` nodes, the nearest first, ourselves among them unless we are a client. At
first every node is asked once, for all its keys. For one that fails, or is late, the next nearest is asked. A node that
refuses a record because it has a newer one counts as a replica: it holds the key. One that is full, or refuses it for
another reason of its own, does not. Nodes that were late in the lookup already are not waited for: they would be here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import trio

from hivemind_p2p.dht.crawl import Crawl
from hivemind_p2p.dht.keys import DHTID
from hivemind_p2p.dht.messages import PeerContact, StoreItem
from hivemind_p2p.dht.protocol import DHTProtocol
from hivemind_p2p.kademlia import Verdict

_HAS_IT = {Verdict.STORED, Verdict.NOT_NEWER, Verdict.UNKNOWN}
"""Answers of nodes that hold the key: hivemind's refuse nothing but what is not newer."""


@dataclass(eq=False)
class _Key:
    """The items of one key, where they may still go, and what became of them."""

    items: Sequence[StoreItem]
    candidates: list[PeerContact]
    verdicts: list[Verdict]
    replicas: int = 0
    awaited: int = 0
    """Nodes that were asked and are not late."""

    def note(self, verdicts: Sequence[Verdict]) -> None:
        """Take a node's answer in."""
        self.verdicts = [before if before else now for before, now in zip(self.verdicts, verdicts, strict=True)]
        self.replicas += all(verdict in _HAS_IT for verdict in verdicts)


async def store_items(
    protocol: DHTProtocol, items: Mapping[DHTID, Sequence[StoreItem]], *, exclude_self: bool
) -> dict[DHTID, list[Verdict]]:
    """Store items by key.

    Returns:
        For each item, in order, whether any node stored it, or why the last one that was asked did not.
    """
    crawl = Crawl(protocol, items, wait_for_slow=False, width=protocol.settings.search_width, at_once=True)
    await crawl.run()
    keys = {}
    for key, its_items in items.items():
        candidates = list(crawl.spread(key, protocol.settings.num_replicas))
        if not exclude_self and not protocol.client_mode:
            nearer = sum(contact.node_id ^ key < protocol.own.node_id ^ key for contact in candidates)
            candidates.insert(nearer, protocol.own)
        keys[key] = _Key(its_items, candidates, [Verdict.UNKNOWN] * len(its_items))
    await _Storing(protocol, keys.values()).run()
    return {key: state.verdicts for key, state in keys.items()}


class _Storing:
    """Gives keys to nodes until every key has its replicas, or nobody is left to ask."""

    def __init__(self, protocol: DHTProtocol, keys: Collection[_Key]) -> None:
        self._protocol, self._keys, self._replicas = protocol, keys, protocol.settings.num_replicas

    async def run(self) -> None:
        async with trio.open_nursery() as self._nursery:
            self._go_on()

    def _go_on(self) -> None:
        asked = defaultdict[PeerContact, list[_Key]](list)
        for key in self._keys:
            missing = max(self._replicas - key.replicas - key.awaited, 0)
            for contact in key.candidates[:missing]:
                asked[contact].append(key)
            key.awaited += len(key.candidates[:missing])
            key.candidates = key.candidates[missing:]
        for contact, keys in asked.items():
            self._nursery.start_soon(self._store_at, contact, keys)
        if all(key.replicas >= self._replicas for key in self._keys):
            self._nursery.cancel_scope.cancel()  # who is late is not needed any more

    async def _store_at(self, contact: PeerContact, keys: Sequence[_Key]) -> None:
        items = [item for key in keys for item in key.items]
        asking = _Asking(keys)
        if contact == self._protocol.own:
            results: list[Verdict] | None = [self._protocol.records.accept(item, None) for item in items]
        else:
            patience = self._protocol.patience.slow_after(contact.peer)
            alarm = self._protocol.alarms.after(patience, lambda: self._lose_patience(asking))
            try:
                results = await self._protocol.store(contact.peer, items)
            finally:
                alarm.call_off()
        asking.end()
        if results is not None:
            position = 0
            for key in keys:
                key.note(results[position : position + len(key.items)])
                position += len(key.items)
        self._go_on()

    def _lose_patience(self, asking: _Asking) -> None:
        asking.end()
        self._go_on()


class _Asking:
    """One node that is awaited for some keys, until it answers or is late."""

    def __init__(self, keys: Sequence[_Key]) -> None:
        self._keys = keys

    def end(self) -> None:
        for key in self._keys:
            key.awaited -= 1
        self._keys = ()
