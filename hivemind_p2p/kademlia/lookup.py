"""The iterative lookup (section 2.3 of the paper) for many targets at once, as a state machine.

Ask it what to ask (``next_requests``), send that, feed back what came of it (``answered`` or ``failed``)::

    lookup = Lookup(targets, seeds, own=own)
    while not lookup.done:
        for request in lookup.next_requests():     # at most alpha in flight per target
            ...                                    # ask request.contact for request.targets
        lookup.answered(request, own_id, {target: contacts})   # or lookup.failed(request), in any order

The rules, all of them:

1. A target's *beam* is the ``width`` nearest contacts that we know of and that have not failed, and the nearest few of
   every path (see ``paths``). The target is finished when everyone in its beam has answered for it, when its caller
   says so (``finish``), or when it has cost ``max_requests``. Unless ``wait_for_slow``, those in its beam whom the
   caller calls ``slow`` need not have answered. A lookup may begin ``narrow``: a beam of fewer nodes, and of one of
   every path. When all of them have answered, the caller says whether it is ``content``, and the target finished; if
   not, or when one of them is slow, the beam is as wide as ever from then on.
2. Of everyone in a beam that was not asked for that target yet, the nearest of the path that was followed least is
   asked next, while fewer than ``alpha`` requests are in flight for the target, and fewer than ``max_parallel`` for
   all. A request that the caller calls ``slow`` does not count for ``alpha`` any more: a few dead peers hold nobody up.
3. A request carries every unfinished target in whose beam its contact is, up to ``targets_per_request``, nearest
   first. All contacts that anyone told of are weighed for all targets. So in a bulk lookup a peer is asked once for
   all that it may know; it is asked again only if later failures move it into another beam, or for targets that its
   answer left out. One peer has at most one request in flight.
4. A contact that fails is out of every beam, for the whole lookup; the next nearest moves up.
5. Nobody is believed too much. Of an answer, the first ``width`` contacts per target count. An answer that names an
   other node id than the one we were told counts as a failure of the contact that we were told of, and the peer goes
   on under the id that it gave itself; what others still say of it is ignored. One that gives different ids fails.
   Ourselves are ignored.
6. Who names mostly contacts that fail loses its credit: those that nobody else named are set aside, and what it names
   from then on does not count. So a liar that names twenty peers who do not exist, nearer than anybody, costs a
   handful of requests and not twenty. Those set aside are asked after all if fewer than half of a beam answered: where
   many have just died, the honest name the dead, too.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic

from hivemind_p2p.kademlia.ids import Contact, NodeID, P
from hivemind_p2p.kademlia.paths import Paths

_TOO_MANY_FAILURES: Final = 3


@dataclass(frozen=True, eq=False)
class Request(Generic[P]):
    """Ask ``contact`` for the nodes nearest to each of ``targets``."""

    contact: Contact[P]
    targets: tuple[NodeID, ...]


@dataclass(slots=True)
class _Target(Generic[P]):
    """One search: ``ranked`` is sorted by distance and holds contacts that did not fail."""

    target: NodeID
    ranked: list[tuple[int, int, Contact[P]]] = field(default_factory=list)
    asked: set[Contact[P]] = field(default_factory=set)
    answered: set[Contact[P]] = field(default_factory=set)
    set_aside: list[tuple[int, int, Contact[P]]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """Requests by path."""
    in_flight: int = 0
    requests: int = 0
    narrow: bool = False


class Lookup(Generic[P]):
    """Find the nodes nearest to some ids.

    Args:
        targets: the ids, in any number.
        seeds: contacts to start from, any order.
        own: who we are.
        width: how many nearest nodes must answer before a target is finished; the paper's ``k``.
        alpha: requests in flight per target.
        max_parallel: requests in flight in all.
        targets_per_request: the most targets that one request asks for.
        max_requests: the most requests spent on one target, whatever peers say.
        wait_for_slow: whether a slow contact may yet have what is looked for.
        paths: disjoint paths.
        narrow: how many nearest nodes may be enough; 0: ``width`` and no fewer.
        content: whether they are, for a target: asked once, with those who answered.
    """

    def __init__(
        self,
        targets: Iterable[NodeID],
        seeds: Iterable[Contact[P]],
        *,
        own: Contact[P],
        width: int = 20,
        alpha: int = 3,
        max_parallel: int = 64,
        targets_per_request: int = 64,
        max_requests: int = 200,
        wait_for_slow: bool = True,
        paths: int = 1,
        narrow: int = 0,
        content: Callable[[NodeID, Sequence[Contact[P]]], bool] = lambda target, answered: False,
    ) -> None:
        self.own, self.width, self.alpha, self.max_parallel = own, width, alpha, max_parallel
        self.targets_per_request, self.max_requests = targets_per_request, max_requests
        self.wait_for_slow, self.narrow, self._content = wait_for_slow, narrow, content
        self.paths: Paths[P] = Paths(paths)
        self._targets: dict[NodeID, _Target[P]] = {
            target: _Target(target, steps=[0] * paths, narrow=narrow > 0) for target in targets
        }
        self._unfinished = dict(self._targets)
        self._known: set[Contact[P]] = set()
        self._true_id: dict[P, NodeID] = {}
        self._busy: set[P] = set()
        self._slow: set[Request[P]] = set()
        self._order = itertools.count()
        self._namers: defaultdict[Contact[P], set[P]] = defaultdict(set)
        self._named_well: Counter[P] = Counter()
        self._named_badly: Counter[P] = Counter()
        for contact in seeds:
            self._named(contact, own.peer)
        self._finish_complete(list(self._unfinished))

    @property
    def done(self) -> bool:
        """Whether every target is finished; what is still in flight does not matter any more."""
        return not self._unfinished

    @property
    def targets(self) -> Collection[NodeID]:
        """What is looked for, found or not."""
        return self._targets.keys()

    @property
    def in_flight(self) -> int:
        """Requests handed out and not fed back."""
        return len(self._busy)

    def is_finished(self, target: NodeID) -> bool:
        """Whether the search for one target is over."""
        return target not in self._unfinished

    def is_narrow(self, targets: Iterable[NodeID]) -> bool:
        """Whether the beams of all these targets are narrow still."""
        return all(self._targets[target].narrow for target in targets)

    def next_requests(self) -> list[Request[P]]:
        """What to ask now; empty when there is nothing to do before one that is in flight comes back."""
        requests: list[Request[P]] = []
        for search in sorted(self._unfinished.values(), key=lambda search: search.in_flight):
            while search.in_flight < self.alpha and len(self._busy) < self.max_parallel:
                contact = self._next_contact(search)
                if contact is None:
                    break
                requests.append(self._request(contact, search))
        return requests

    def answered(self, request: Request[P], node_id: NodeID, neighbours: Mapping[NodeID, Iterable[Contact[P]]]) -> None:
        """Feed an answer.

        Args:
            request: what it answers.
            node_id: the id that the peer gave itself.
            neighbours: for each target, whom the peer named. Targets that are left out are asked for again, unless all
                are, which is a failure.
        """
        contact = Contact(node_id, request.contact.peer)
        two_faced = self._true_id.get(contact.peer, node_id) != node_id
        if two_faced or not any(target in neighbours for target in request.targets):
            self.failed(request)
            return
        changed: Iterable[NodeID] = request.targets
        if contact.peer not in self._true_id and self._settle_identity(contact):
            changed = list(self._unfinished)
        self._came_back(request)
        self._named_well.update(self._namers[contact])
        for target in request.targets:
            search = self._targets[target]
            search.asked.discard(request.contact)
            if target in neighbours:
                search.asked.add(contact)
                search.answered.add(contact)
                for neighbour in itertools.islice(neighbours[target], self.width):
                    self._named(neighbour, contact.peer)
        self._finish_complete(changed)

    def failed(self, request: Request[P]) -> None:
        """Feed a failure: no answer in time, no connection, or nonsense."""
        self._came_back(request)
        self._forget(request.contact)
        for namer in self._namers[request.contact] - {self.own.peer}:
            self._named_badly[namer] += 1
            if not self._has_credit(namer):
                self._set_aside_what_only_liars_named()
        self._finish_complete(list(self._unfinished))

    def slow(self, request: Request[P]) -> None:
        """Feed that an answer is long in coming. It may still come; others may be asked beside it."""
        if request not in self._slow:
            self._counts_no_more(request)
            for target in request.targets:
                self._targets[target].narrow = False
            if not self.wait_for_slow:
                self._finish_complete(request.targets)

    def finish(self, target: NodeID) -> None:
        """End the search for one target: the caller has found what it wanted."""
        self._unfinished.pop(target, None)

    def nearest(self, target: NodeID) -> Sequence[Contact[P]]:
        """The ``width`` contacts nearest to ``target`` of all that answered anything in this lookup, nearest first."""
        alive = [contact for _, _, contact in self._targets[target].ranked if contact.peer in self._true_id]
        return alive[: self.width]

    def spread(self, target: NodeID, count: int) -> Sequence[Contact[P]]:
        """Like :meth:`nearest`, but with somebody of every path among the first ``count``."""
        alive = [contact for _, _, contact in self._targets[target].ranked if contact.peer in self._true_id]
        return self.paths.spread(alive, count)[: self.width]

    def __repr__(self) -> str:
        return (
            f"<Lookup {len(self._targets) - len(self._unfinished)}/{len(self._targets)} targets finished, "
            f"{len(self._known)} contacts, {len(self._busy)} in flight>"
        )

    def _next_contact(self, search: _Target[P]) -> Contact[P] | None:
        """Rule 2."""
        if search.requests >= self.max_requests:
            return None
        waiting = (
            contact for contact in self._beam(search) if contact not in search.asked and contact.peer not in self._busy
        )
        if self.paths.count == 1:
            return next(waiting, None)
        return min(waiting, key=lambda contact: search.steps[self._least_followed(search, contact)], default=None)

    def _least_followed(self, search: _Target[P], contact: Contact[P]) -> int:
        return min(self.paths.of(contact), key=search.steps.__getitem__, default=0)

    def _request(self, contact: Contact[P], search: _Target[P]) -> Request[P]:
        """Rule 3."""
        others = sorted(
            (other for other in self._unfinished.values() if other is not search and self._wants(other, contact)),
            key=lambda other: other.target ^ contact.node_id,
        )
        searches = [search, *others[: self.targets_per_request - 1]]
        for chosen in searches:
            chosen.asked.add(contact)
            chosen.in_flight += 1
            chosen.requests += 1
            chosen.steps[self._least_followed(chosen, contact)] += 1
        self._busy.add(contact.peer)
        return Request(contact, tuple(chosen.target for chosen in searches))

    def _wants(self, search: _Target[P], contact: Contact[P]) -> bool:
        if contact in search.asked or search.requests >= self.max_requests:
            return False
        width = self.narrow if search.narrow else self.width
        return len(search.ranked) < width or contact.node_id ^ search.target <= search.ranked[width - 1][0]

    def _named(self, contact: Contact[P], namer: P) -> None:
        """Rule 6."""
        if self._has_credit(namer):
            self._namers[contact].add(namer)
            if namer == self.own.peer:
                self.paths.start(contact)
            else:
                self.paths.named(contact, namer)
            self._learn(contact)

    def _has_credit(self, namer: P) -> bool:
        return self._named_badly[namer] < max(_TOO_MANY_FAILURES, 2 * self._named_well[namer])

    def _set_aside_what_only_liars_named(self) -> None:
        for search in self._targets.values():
            kept = []
            for item in search.ranked:
                contact = item[2]
                asked = contact.peer in self._true_id or contact.peer in self._busy
                if asked or any(map(self._has_credit, self._namers[contact])):
                    kept.append(item)
                else:
                    self._known.discard(contact)  # somebody better may still name it
                    search.set_aside.append(item)
            search.ranked = kept

    def _try_those_set_aside(self, search: _Target[P]) -> bool:
        """A few of them, nearest first, if there are any whom nobody better named meanwhile."""
        search.set_aside = sorted(item for item in search.set_aside if item[2] not in self._known)
        for _, _, contact in search.set_aside[: self.alpha]:
            self._named(contact, self.own.peer)
        tried = bool(search.set_aside)
        del search.set_aside[: self.alpha]
        return tried

    def _learn(self, contact: Contact[P]) -> None:
        """Rule 3, weighed for all targets; rule 5."""
        if contact in self._known or contact.node_id == self.own.node_id or contact.peer == self.own.peer:
            return
        if self._true_id.get(contact.peer, contact.node_id) != contact.node_id:
            return
        self._known.add(contact)
        # A few beams' worth is kept per target to fall back on when those in the beam fail.
        keep = 4 * self.width
        order = next(self._order)
        for search in self._unfinished.values():
            item = (contact.node_id ^ search.target, order, contact)
            if len(search.ranked) < keep or item < search.ranked[-1] or self.paths.count > 1:
                insort(search.ranked, item)
                self._trim(search, keep)

    def _trim(self, search: _Target[P], keep: int) -> None:
        """Forget the farthest, but for those that a path keeps in sight."""
        if self.paths.count == 1:
            del search.ranked[keep:]
        elif len(search.ranked) > 2 * keep:
            kept = set(self.paths.in_sight([contact for _, _, contact in search.ranked], keep))
            search.ranked = [item for item in search.ranked if item[2] in kept]

    def _settle_identity(self, contact: Contact[P]) -> bool:
        """Rule 5: a peer is whom it says it is, and nobody else. Whether others had told of it wrongly."""
        self._true_id[contact.peer] = contact.node_id
        wrong = [known for known in self._known if known.peer == contact.peer and known != contact]
        self.paths.named(contact, contact.peer)  # under whatever id it was found
        for told in wrong:
            self._forget(told)
        self._learn(contact)
        return bool(wrong)

    def _forget(self, contact: Contact[P]) -> None:
        """Rule 4. It stays in ``_known``, so that nobody can make us believe in it again."""
        self._known.add(contact)
        for search in self._targets.values():
            search.ranked = [item for item in search.ranked if item[2] != contact]

    def _came_back(self, request: Request[P]) -> None:
        if request not in self._slow:
            self._counts_no_more(request)
        self._slow.remove(request)
        self._busy.discard(request.contact.peer)

    def _counts_no_more(self, request: Request[P]) -> None:
        self._slow.add(request)
        for target in request.targets:
            self._targets[target].in_flight -= 1

    def _finish_complete(self, targets: Iterable[NodeID]) -> None:
        """Rule 1, for targets of which something may have changed."""
        slow = set() if self.wait_for_slow else {request.contact for request in self._slow}
        for target in targets:
            search = self._targets[target]
            if search.narrow and all(contact in search.answered for contact in self._beam(search)):
                beam, search.narrow = self._beam(search), False
                if beam and self._content(target, beam):
                    self.finish(target)
            spent = search.requests >= self.max_requests and search.in_flight == 0
            while spent or all(contact in search.answered or contact in slow for contact in self._beam(search)):
                answered = sum(contact in search.answered for contact in self._beam(search))
                enough = 2 * answered >= self.width or target not in self._unfinished
                if spent or enough or not self._try_those_set_aside(search):
                    self._unfinished.pop(target, None)
                    break

    def _beam(self, search: _Target[P]) -> Sequence[Contact[P]]:
        ranked = [contact for _, _, contact in search.ranked]
        return self.paths.in_sight(ranked, self.narrow, 1) if search.narrow else self.paths.in_sight(ranked, self.width)
