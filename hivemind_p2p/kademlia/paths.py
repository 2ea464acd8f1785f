"""Disjoint paths of a lookup (S/Kademlia, Baumgart and Mies 2007, section 4.4), so that no liar leads all of it astray.

A liar that is asked may name accomplices, who live, answer, are nearer to the target than anybody honest, and name each
other. They would fill the beam of a lookup, and whoever has the value would never be asked. So the contacts that a
lookup starts from are dealt to a few paths. What somebody names goes to the path that he was found on first, and to no
other: a liar spoils one path. A contact that several paths lead to is on all of them, and asked once.

Where nobody lies, paths soon meet at the nodes nearest to the target, and cost next to nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Generic

from hivemind_p2p.kademlia.ids import Contact, P


class Paths(Generic[P]):
    """Which contacts are on which paths.

    Args:
        count: how many paths; 1: everybody is on it.
        width: contacts that each path keeps in sight, however many nearer ones other paths have.
    """

    def __init__(self, count: int, width: int = 3) -> None:
        self.count, self.width = count, width
        self._on: dict[Contact[P], int] = {}  # bits
        self._found_on: dict[P, int] = {}
        self._deal = itertools.cycle(range(count))

    def start(self, contact: Contact[P]) -> None:
        """A lookup starts from this contact, too."""
        if contact not in self._on:
            self._put(contact, next(self._deal))

    def named(self, contact: Contact[P], namer: P) -> None:
        """Somebody named a contact."""
        self._put(contact, self._found_on.get(namer, 0))

    def of(self, contact: Contact[P]) -> list[int]:
        """The paths that a contact is on."""
        bits = self._on.get(contact, 0)
        return [path for path in range(self.count) if bits >> path & 1]

    def in_sight(self, ranked: Sequence[Contact[P]], first: int, width: int | None = None) -> list[Contact[P]]:
        """Of contacts in order, the first so many, and those that a path keeps in sight.

        Args:
            first: how many count on their own.
            width: how many each path keeps in sight, if not as many as usual.
        """
        beam = list(ranked[:first])
        if self.count > 1 and len(ranked) > first:
            lacking = [self.width if width is None else width] * self.count
            for index, contact in enumerate(ranked):
                wanted = [path for path in self.of(contact) if lacking[path] > 0]
                for path in wanted:
                    lacking[path] -= 1
                if index >= first and wanted:
                    beam.append(contact)
                if not any(lacking):
                    break
        return beam

    def spread(self, ranked: Sequence[Contact[P]], first: int) -> list[Contact[P]]:
        """Contacts in order, but so that the first so many are of all paths: a fair part is of each, but for one."""
        if self.count == 1:
            return list(ranked)
        fair = max(first // self.count, (first - 1) // (self.count - 1))
        places, chosen = [fair] * self.count, list[Contact[P]]()
        while len(chosen) < first:
            lacking = {path for path in range(self.count) if places[path] > 0}
            scarce = sum(places[path] for path in lacking) >= first - len(chosen)
            contact = next(
                (
                    contact
                    for contact in ranked
                    if contact not in chosen and (not scarce or lacking.intersection(self.of(contact)))
                ),
                None,
            )
            if contact is None:
                break
            chosen.append(contact)
            for path in self.of(contact):
                places[path] -= 1
        return [*chosen, *(contact for contact in ranked if contact not in chosen)]

    def __repr__(self) -> str:
        return f"<Paths: {len(self._on)} contacts on {self.count}>"

    def _put(self, contact: Contact[P], path: int) -> None:
        self._on[contact] = self._on.get(contact, 0) | 1 << path
        self._found_on.setdefault(contact.peer, path)
