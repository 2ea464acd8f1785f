"""What keeps a node's view of the swarm true, in the background and bounded.

* A contact that stands in the way of a newcomer is pinged, and makes room if it is silent.
* A node that we meet for the first time is given the records that it should hold and that we answer for, being the
  nearest to their keys of all whom we know.
* Buckets from which nobody was heard for ``refresh_timeout`` are refreshed by looking up an id in each.

Jobs wait in a short queue for a few workers. When it is full a job is dropped: the table then learns a little later.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from hivemind_p2p.dht.crawl import Crawl
from hivemind_p2p.dht.messages import PeerContact, StoreItem, record_item
from hivemind_p2p.dht.protocol import DHTProtocol
from hivemind_p2p.errors import HivemindError

logger = logging.getLogger(__name__)
Job = Callable[[], Awaitable[object]]
_QUEUE: Final = 256
_WORKERS: Final = 8
_RECORDS_AT_ONCE: Final = 64


class Upkeep:
    """The background jobs of one node.

    Args:
        random: chooses the ids that refresh buckets.
    """

    def __init__(self, protocol: DHTProtocol, random: random.Random) -> None:
        self._protocol, self._random = protocol, random
        self._outbox: dict[PeerContact, list[StoreItem]] = {}
        self._jobs, self._queue = trio.open_memory_channel[Job](_QUEUE)
        protocol.on_contact_to_ping = self._ping_later
        protocol.on_new_contact = self._hand_over_later

    def send_later(self, contact: PeerContact, items: Sequence[StoreItem]) -> None:
        """Store records at a peer some time soon, together with what waits for it already."""
        waiting = self._outbox.get(contact)
        if waiting is not None:
            waiting += items[: self._protocol.settings.max_keys_per_message - len(waiting)]
        elif self._put(lambda: self._send(contact)):
            self._outbox[contact] = list(items)

    async def run(self) -> None:
        """Work, for ever."""
        async with trio.open_nursery() as nursery:
            for _ in range(_WORKERS):
                nursery.start_soon(self._work)
            if self._protocol.settings.refresh_timeout is not None:
                nursery.start_soon(self._refresh_for_ever, self._protocol.settings.refresh_timeout)

    async def refresh(self, before: float) -> None:
        """Look up an id in every bucket from which nobody was heard since ``before``."""
        stale = self._protocol.table.stale_buckets(before)
        await Crawl(self._protocol, [self._random.randrange(bucket.lower, bucket.upper) for bucket in stale]).run()

    def __repr__(self) -> str:
        return f"<Upkeep, {self._queue.statistics().current_buffer_used} jobs waiting>"

    def _put(self, job: Job) -> bool:
        try:
            self._jobs.send_nowait(job)
        except trio.WouldBlock:
            return False
        return True

    async def _work(self) -> None:
        async for job in self._queue:
            try:
                await job()
            except HivemindError as error:
                logger.debug("a background job of the DHT came to nothing: %s", error)
            except Exception:
                logger.exception("a background job of the DHT failed; the next one goes on")

    async def _send(self, contact: PeerContact) -> None:
        await self._protocol.store(contact.peer, self._outbox.pop(contact))

    def _ping_later(self, contact: PeerContact) -> None:
        if not self._put(lambda: self._protocol.ping(contact.peer)):
            self._protocol.table.bucket_of(contact.node_id).being_pinged.discard(contact.node_id)

    def _hand_over_later(self, contact: PeerContact) -> None:
        if len(self._protocol.storage):
            self._put(lambda: self._hand_over(contact))

    async def _hand_over(self, contact: PeerContact) -> None:
        table, replicas, now = self._protocol.table, self._protocol.settings.num_replicas, self._protocol.clock()
        items = []
        for number, (key, record) in enumerate(self._protocol.storage.items(now)):
            if number % _RECORDS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            others = table.nearest(key, replicas, exclude={contact.node_id})
            we_answer_for_it = not others or self._protocol.own.node_id ^ key < others[0].node_id ^ key
            it_should_hold = len(others) < replicas or contact.node_id ^ key < others[-1].node_id ^ key
            if we_answer_for_it and it_should_hold:
                items.append(record_item(key, record, now=now))
        if items:
            await self._protocol.store(contact.peer, items)

    async def _refresh_for_ever(self, period: float) -> None:
        while True:
            await trio.sleep(period)
            try:
                await self.refresh(self._protocol.clock() - period)
            except Exception:
                logger.exception("refreshing the routing table failed; it is tried again in %g s", period)
