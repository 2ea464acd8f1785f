"""What keeps a node's view of the swarm true, in the background and bounded.

* A contact that stands in the way of a newcomer is pinged, and makes room if it is silent.
* A node that we meet for the first time is given the records that it should hold and that we answer for, being the
  nearest to their keys of all whom we know.
* Now and then the nearest of the nodes that we met last is asked whom it knows near us. Strangers are pinged. Several
  at once mean that it comes from a swarm, or a part of one, that we had not heard of: then all buckets are refreshed,
  and so nodes near and far meet us, and ask us in their turn. In this way two swarms become one within a minute of the
  first contact between them, while newcomers cost a node one request in half a minute at most. To a newcomer all
  are strangers: whom it meets while it joins does not count, or every join would be made twice.
* Buckets from which nobody was heard for ``refresh_timeout`` are refreshed by looking up an id in each.

Jobs wait in a short queue for a few workers. When it is full a job is dropped: the table then learns a little later.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
_PROBE_AFTER: Final = 1.0
_PROBE_EVERY: Final = 30.0
_MET: Final = 64
_ANOTHER_SWARM: Final = 4
_TOUR_EVERY: Final = 60.0
_GHOSTS: Final = 3
"""Strangers that are not there, after which nobody else that the same node names is believed."""


class Upkeep:
    """The background jobs of one node.

    Args:
        random: chooses the ids that refresh buckets.
    """

    def __init__(self, protocol: DHTProtocol, random: random.Random) -> None:
        self._protocol, self._random = protocol, random
        self._neighbours = protocol.settings.search_width
        self._met: deque[PeerContact] = deque(maxlen=_MET)
        self._someone_met = trio.Event()
        self._next_tour = -math.inf
        self._joining = 0
        self._outbox: dict[PeerContact, list[StoreItem]] = {}
        self._jobs, self._queue = trio.open_memory_channel[Job](_QUEUE)
        protocol.on_contact_to_ping = self._ping_later
        protocol.on_new_contact = self._meet_later

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
            nursery.start_soon(self._probe_for_ever)
            if self._protocol.settings.refresh_timeout is not None:
                nursery.start_soon(self._refresh_for_ever, self._protocol.settings.refresh_timeout)

    @contextmanager
    def joining(self) -> Iterator[None]:
        """While a node gets to know its swarm; does nothing for one that is in a swarm already."""
        newcomer = not len(self._protocol.table)
        self._joining += newcomer
        try:
            yield
        finally:
            self._joining -= newcomer

    async def refresh(self, before: float) -> None:
        """Look up an id in every bucket from which nobody was heard since ``before``."""
        stale = self._protocol.table.stale_buckets(before)
        targets = [self._random.randrange(bucket.lower, bucket.upper) for bucket in stale]
        await Crawl(self._protocol, targets, width=self._neighbours).run()

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

    def _meet_later(self, contact: PeerContact) -> None:
        if len(self._protocol.storage):
            self._put(lambda: self._hand_over(contact))
        if not self._joining:
            self._met.append(contact)
            self._someone_met.set()

    async def _look_for_strangers(self, contact: PeerContact) -> None:
        table, own = self._protocol.table, self._protocol.own.node_id
        answer = await self._protocol.find(contact.peer, [own])
        if answer is None or own not in answer.found:
            return
        named = {other.node_id: other for other in answer.found[own].nearest if other != self._protocol.own}
        known = {other.node_id for other in table.nearest(own, self._neighbours)}
        nearest = sorted({*named, *known}, key=own.__xor__)[: self._neighbours]
        met = ghosts = 0
        for stranger in [named[node_id] for node_id in nearest if node_id not in table]:
            if ghosts >= _GHOSTS:
                break
            if await self._greet(stranger):
                met += 1
            else:
                ghosts += 1
        now = trio.current_time()  # a clock may be set back
        if met >= _ANOTHER_SWARM and now >= self._next_tour:
            self._next_tour = now + _TOUR_EVERY
            await self.refresh(math.inf)

    async def _greet(self, stranger: PeerContact) -> bool:
        """Get to know a node; whether it is there, under the id by which it was named."""
        try:
            if stranger.node_id not in self._protocol.table:
                await self._protocol.ping(stranger.peer)
        except HivemindError as error:
            logger.debug("%s was named to us and does not answer: %s", stranger.peer, error)
        return stranger.node_id in self._protocol.table

    async def _probe_for_ever(self) -> None:
        """Look for strangers through the nearest of the nodes that we met last, now and then."""
        own = self._protocol.own.node_id
        while True:
            await self._someone_met.wait()
            await trio.sleep(_PROBE_AFTER)
            self._someone_met = trio.Event()
            nearest = min(self._met, key=lambda contact: contact.node_id ^ own)
            self._met.clear()
            self._put(partial(self._look_for_strangers, nearest))
            await trio.sleep(_PROBE_EVERY)

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
