"""Storing: find the nodes nearest to each key, and give each node all that it should hold in one message.

Every key is to be taken by ``num_replicas`` nodes, the nearest first, ourselves among them unless we are a client. In
each round every node is asked once, for all its keys; a node that fails is replaced by the next nearest in the next
round. A node that refuses a record because it has a newer one counts as a replica: it holds the key. One that is full,
or refuses it for another reason of its own, does not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import trio

from hivemind_p2p.dht.crawl import Crawl
from hivemind_p2p.dht.keys import DHTID
from hivemind_p2p.dht.messages import PeerContact, StoreItem
from hivemind_p2p.dht.protocol import DHTProtocol
from hivemind_p2p.kademlia import Verdict


@dataclass
class _Key:
    """The items of one key, where they may still go, and what became of them."""

    items: Sequence[StoreItem]
    candidates: list[PeerContact]
    verdicts: list[Verdict]
    replicas: int = 0

    def note(self, verdicts: Sequence[Verdict]) -> None:
        """Take a node's answer in."""
        self.verdicts = [before if before else now for before, now in zip(self.verdicts, verdicts, strict=True)]
        self.replicas += all(verdict in _HAS_IT for verdict in verdicts)


_HAS_IT = {Verdict.STORED, Verdict.NOT_NEWER, Verdict.UNKNOWN}
"""Answers of nodes that hold the key: hivemind's refuse nothing but what is not newer."""


async def store_items(
    protocol: DHTProtocol, items: Mapping[DHTID, Sequence[StoreItem]], *, exclude_self: bool
) -> dict[DHTID, list[Verdict]]:
    """Store items by key.

    Returns:
        For each item, in order, whether any node stored it, or why the last one that was asked did not.
    """
    crawl = Crawl(protocol, items)
    await crawl.run()
    keys = {}
    for key, its_items in items.items():
        candidates = list(crawl.nearest(key))
        if not exclude_self and not protocol.client_mode:
            candidates = sorted([*candidates, protocol.own], key=lambda contact: contact.node_id ^ key)
        keys[key] = _Key(its_items, candidates, [Verdict.UNKNOWN] * len(its_items))
    while asked := _next_round(keys.values(), protocol.settings.num_replicas):
        async with trio.open_nursery() as nursery:
            for contact, its_keys in asked.items():
                nursery.start_soon(_store_at, protocol, contact, its_keys)
    return {key: state.verdicts for key, state in keys.items()}


def _next_round(keys: Iterable[_Key], replicas: int) -> dict[PeerContact, list[_Key]]:
    asked = defaultdict[PeerContact, list[_Key]](list)
    for key in keys:
        missing = replicas - key.replicas
        for contact in key.candidates[:missing]:
            asked[contact].append(key)
        key.candidates = key.candidates[missing:]
    return asked


async def _store_at(protocol: DHTProtocol, contact: PeerContact, keys: Sequence[_Key]) -> None:
    items = [item for key in keys for item in key.items]
    if contact == protocol.own:
        results: list[Verdict] | None = [protocol.records.accept(item, None) for item in items]
    else:
        results = await protocol.store(contact.peer, items)
    if results is None:
        return
    position = 0
    for key in keys:
        key.note(results[position : position + len(key.items)])
        position += len(key.items)
