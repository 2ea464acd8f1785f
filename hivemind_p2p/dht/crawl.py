"""``Crawl``: one lookup on the network. It sends what the pure ``Lookup`` says and feeds back what comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import trio

from hivemind_p2p.dht.keys import DHTID
from hivemind_p2p.dht.messages import FindAnswer, PeerContact
from hivemind_p2p.dht.protocol import DHTProtocol
from hivemind_p2p.dht.trace import LookupEnded
from hivemind_p2p.kademlia import Lookup, Request
from hivemind_p2p.wire.peer_id import PeerID


class Crawl:
    """Ask peers nearer and nearer to some ids: ``await Crawl(protocol, targets).run()``, then ``nearest``.

    Args:
        targets: ids of nodes or keys.
        on_answer: called with every answer, before the next requests; gives the targets whose search that ends.
        on_finished: called once for every target, when its search is over.
        wait_for_slow: whether to wait for peers who are late, as far as ``lookup_timeout`` allows.
        width: how many of the nearest nodes have to answer; by default ``bucket_size``.
        narrow, content: see :class:`~hivemind_p2p.kademlia.lookup.Lookup`.
        tell_nearest: how many nodes a peer is to name while the lookup is narrow or gentle; 0: as many as ever.
        gently: whether one peer is asked at first, and more when it has answered, or not as soon as it mostly does:
            where the nearest peers are known, the first of them is likely to have what is looked for.
        at_once: whether all of them are asked at the same time, since all must be heard anyway: a few requests more in
            a large swarm, a fraction of the time in any.
    """

    def __init__(
        self,
        protocol: DHTProtocol,
        targets: Iterable[DHTID],
        *,
        on_answer: Callable[[PeerContact, FindAnswer], Iterable[DHTID]] = lambda contact, answer: (),
        on_finished: Callable[[DHTID], None] = lambda target: None,
        wait_for_slow: bool = True,
        width: int | None = None,
        at_once: bool = False,
        gently: bool = False,
        narrow: int = 0,
        tell_nearest: int = 0,
        content: Callable[[DHTID, Sequence[PeerContact]], bool] = lambda target, answered: False,
    ) -> None:
        self._protocol, self._on_answer, self._on_finished = protocol, on_answer, on_finished
        settings, now = protocol.settings, trio.current_time()
        self._unfinished = dict.fromkeys(targets)
        seeds = {
            contact: None
            for target in self._unfinished
            for contact in protocol.table.nearest(target, settings.bucket_size)
            if not protocol.blacklist.passes_over(contact.peer, now)
        }
        self.lookup: Lookup[PeerID] = Lookup(
            self._unfinished,
            seeds,
            own=protocol.own,
            width=(width := settings.bucket_size if width is None else width),
            alpha=1 if gently else max(width, settings.alpha) if at_once else settings.alpha,
            max_parallel=settings.parallel_rpc,
            targets_per_request=settings.keys_per_request,
            wait_for_slow=wait_for_slow,
            paths=settings.lookup_paths,
            narrow=narrow,
            content=content,
        )
        self._gently, self._tell_nearest = gently, tell_nearest
        self._nursery: trio.Nursery | None = None
        self._requests = self._failures = self._hops = 0
        self._depth: dict[PeerContact, int] = dict.fromkeys(seeds, 1)

    async def run(self) -> None:
        """Search until every target is finished, or until ``lookup_timeout``."""
        began = trio.current_time()
        with trio.move_on_after(self._protocol.settings.lookup_timeout):
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._go_on()
        self._nursery = None
        for target in list(self._unfinished):
            self.lookup.finish(target)
        self._report_finished()
        if self._protocol.trace is not None and self._requests:
            seconds = trio.current_time() - began
            targets = len(self.lookup.targets)
            self._protocol.trace(LookupEnded(targets, self._requests, self._failures, self._hops, seconds))

    def finish(self, target: DHTID) -> None:
        """End the search for one target: it was found, or nobody wants it any more."""
        self.lookup.finish(target)
        self._go_on()

    def nearest(self, target: DHTID) -> Sequence[PeerContact]:
        """The nodes nearest to ``target`` that answered, nearest first; not ourselves."""
        return self.lookup.nearest(target)

    def spread(self, target: DHTID, count: int) -> Sequence[PeerContact]:
        """Like :meth:`nearest`, but no single liar chose all of the first ``count``."""
        return self.lookup.spread(target, count)

    def __repr__(self) -> str:
        return f"<Crawl {self.lookup!r}>"

    def _go_on(self) -> None:
        self._report_finished()
        if self._nursery is None:
            return
        for request in self.lookup.next_requests():
            self._requests += 1
            self._nursery.start_soon(self._ask, request)
        if self.lookup.done:
            self._nursery.cancel_scope.cancel()

    async def _ask(self, request: Request[PeerID]) -> None:
        patience = self._protocol.patience.slow_after(request.contact.peer)
        few = self._gently or self.lookup.is_narrow(request.targets)
        if self._gently:
            patience = self._protocol.patience.hedge_after(request.contact.peer) or patience
        alarm = self._protocol.alarms.after(patience, lambda: self._lose_patience(request))
        try:
            answer = await self._protocol.find(
                request.contact.peer, request.targets, tell_nearest=self._tell_nearest if few else 0
            )
        finally:
            alarm.call_off()
        self._no_longer_gently()
        if answer is None:
            self._failures += 1
            self.lookup.failed(request)
        else:
            neighbours = {target: found.nearest for target, found in answer.found.items()}
            self._note_depth(request, neighbours)
            over = self._on_answer(request.contact, answer)
            self.lookup.answered(request, answer.node_id, neighbours)
            for target in over:
                self.lookup.finish(target)
        self._go_on()

    def _lose_patience(self, request: Request[PeerID]) -> None:
        self._no_longer_gently()
        self.lookup.slow(request)
        self._go_on()

    def _no_longer_gently(self) -> None:
        if self._gently:
            self._gently, self.lookup.alpha = False, self._protocol.settings.alpha

    def _note_depth(self, request: Request[PeerID], neighbours: Mapping[DHTID, Sequence[PeerContact]]) -> None:
        depth = self._depth.get(request.contact, 1)
        self._hops = max(self._hops, depth)
        for named in neighbours.values():
            for contact in named:
                self._depth.setdefault(contact, depth + 1)

    def _report_finished(self) -> None:
        for target in [target for target in self._unfinished if self.lookup.is_finished(target)]:
            # on_finished may finish other targets, and so bring us here again before we are through.
            if target in self._unfinished:
                del self._unfinished[target]
                self._on_finished(target)
