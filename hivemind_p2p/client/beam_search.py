"""The beam search over a grid of experts, for all samples of a batch at once. Pure: look-ups are asked for and fed.

An expert ``ffn.3.7`` has the score ``scores[0][3] + scores[1][7]``. The search walks the grid axis by axis and keeps,
for every sample, the ``beam_size`` best prefixes that lead to a living expert (Ryabinin and Gusev, "Towards
Crowdsourced Training of Large Neural Networks using Decentralized Mixture-of-Experts", section 3.2). The DHT knows:

* ``ffn.3.`` lists the coordinates that follow, here 7, each with an expert that has them; and so on down the axes.
* In a grid of one axis, ``ffn.5.`` lists the expert itself under ``FLAT_EXPERT``.
* ``ffn.`` lists the coordinates of the first axis. hivemind's servers leave that out. So coordinates that are not in
  it are *doubtful*: they are tried as far as ``doubtful_limit`` goes, once per search, rather than taken for dead. When
  there is no such list at all, every coordinate may be alive, and is tried in the order of its score.

All samples share one set of look-ups. On each axis we ask about the best candidates whose fate is not known, until the
best ``beam_size`` of every sample are known to be alive; each time, twice as many as the time before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import torch

from hivemind_p2p.wire.expert_uid import FLAT_EXPERT, UID_DELIMITER
from hivemind_p2p.wire.peer_id import PeerID


class ExpertInfo(NamedTuple):
    """An expert, and the peer that serves it."""

    uid: str
    peer_id: PeerID


Listing: TypeAlias = Mapping[int, ExpertInfo]
"""What the DHT lists under one prefix: the coordinate that follows, and an expert that has it."""

_DEAD, _DOUBTFUL, _UNKNOWN, _ALIVE = 0, 1, 2, 3
DOUBTFUL_LIMIT: Final = 64


@dataclass(frozen=True)
class Choice:
    """Experts chosen for the samples of a batch.

    Attributes:
        experts: each expert that any sample chose, once.
        index: int64 ``[samples, at most k]``, places in ``experts``, best first; -1 where a sample has found no more.
        coordinates: int64 ``[experts, axes]``, where they are in the grid.
    """

    experts: Sequence[ExpertInfo]
    index: torch.Tensor
    coordinates: torch.Tensor


class BeamSearch:
    """One search: feed it what it :meth:`wanted` until it wants nothing more, then take its :meth:`result`.

    Args:
        prefix: of all the experts, ends with a dot: ``ffn.``.
        scores: one float tensor ``[samples, length of the axis]`` per axis, on the CPU. Coordinates with ``-inf`` or
            NaN are not chosen.
        k_best: how many experts to find for each sample.
        beam_size: how many prefixes to keep for each sample; at least, and by default, ``k_best``.
        doubtful_limit: see above.
    """

    def __init__(
        self,
        prefix: str,
        scores: Sequence[torch.Tensor],
        k_best: int,
        *,
        beam_size: int | None = None,
        doubtful_limit: int = DOUBTFUL_LIMIT,
    ) -> None:
        self._scores = [axis.float().nan_to_num(nan=-torch.inf, neginf=-torch.inf) for axis in scores]
        self._k_best = k_best
        self._beam_size = max(k_best, beam_size or 0)
        self._doubtful_limit = doubtful_limit
        samples = len(scores[0])
        self._axis = 0
        # The nodes of the tree that the beams of all samples hold; for each its prefix, its coordinates, and what is
        # known of its children. A sample's beam is places in these lists, with the score so far.
        self._prefixes = [prefix]
        self._coordinates = torch.zeros(1, 0, dtype=torch.int64, device="cpu")
        self._fate = torch.full((1, self._scores[0].shape[1]), _UNKNOWN, dtype=torch.uint8, device="cpu")
        self._beam = torch.zeros(samples, 1, dtype=torch.int64, device="cpu")
        self._beam_scores = torch.zeros(samples, 1, device="cpu")
        self._listings: dict[int, Listing] = {}
        self._asked: dict[str, int] = {}
        self._rounds = -1  # look-ups on this axis; -1: the list of the first axis comes first
        self._choice: Choice | None = None
        if samples == 0:
            nothing = torch.zeros(0, 0, dtype=torch.int64, device="cpu")
            self._choice = Choice([], nothing, torch.zeros(0, len(scores), dtype=torch.int64, device="cpu"))

    def wanted(self) -> list[str]:
        """The prefixes to look up next; none when the search is over."""
        while self._choice is None:
            if self._rounds < 0:
                self._asked = {self._prefixes[0]: -1}
                return list(self._asked)
            unknown = self._undecided()
            if len(unknown):
                length = self._fate.shape[1]
                self._asked = {self._child(*divmod(child, length)): child for child in unknown.tolist()}
                return list(self._asked)
            self._advance()
        return []

    def feed(self, found: Mapping[str, Listing]) -> None:
        """Tell what the DHT lists under the prefixes that were wanted; those that are missing lead nowhere."""
        for prefix, child in self._asked.items():
            listing = found.get(prefix, {})
            if child < 0:
                self._feed_first_axis(listing)
                continue
            if self._axis + 1 < len(self._scores):
                valid = {at: info for at, info in listing.items() if self._fits(prefix, at, info)}
            else:
                valid = {at: info for at, info in listing.items() if at == FLAT_EXPERT and info.uid == prefix[:-1]}
            self._listings[child] = valid
            self._fate.view(-1)[child] = _ALIVE if valid else _DEAD
        self._asked = {}
        self._rounds += 1
        if self._rounds >= 1:
            self._fate[self._fate == _DOUBTFUL] = _DEAD

    def result(self) -> Choice:
        """What was found, once nothing more is wanted."""
        if self._choice is None:
            raise RuntimeError("this search is not over: feed what wanted() says until it says nothing")
        return self._choice

    def _feed_first_axis(self, listing: Listing) -> None:
        length = self._fate.shape[1]
        listed = [at for at in listing if 0 <= at < length]
        if listed:
            self._fate[:] = _DOUBTFUL
            self._fate[0, listed] = _UNKNOWN
        if len(self._scores) == 1:  # the list has the experts themselves
            for at in listed:
                if listing[at].uid == f"{self._prefixes[0]}{at}":
                    self._listings[at] = {FLAT_EXPERT: listing[at]}
                    self._fate[0, at] = _ALIVE

    def _fits(self, prefix: str, at: int, info: ExpertInfo) -> bool:
        """Whether an entry is one of the next axis; on the last axis it must be the expert with that very uid."""
        if not 0 <= at < self._scores[self._axis + 1].shape[1]:
            return False
        uid = f"{prefix}{at}"
        return info.uid == uid or (self._axis + 2 < len(self._scores) and info.uid.startswith(uid + UID_DELIMITER))

    def _child(self, node: int, coordinate: int) -> str:
        return f"{self._prefixes[node]}{coordinate}{UID_DELIMITER}"

    def _best(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best children of each sample's beam that are not known to be dead.

        Returns:
            Scores ``[samples, at most width]``, best first, ``-inf`` where there are no more; and which children they
            are, ``node * length of the axis + coordinate``.
        """
        axis = self._scores[self._axis]
        samples, length = axis.shape
        scores = self._beam_scores[:, :, None] + axis[:, None, :]
        scores = scores.masked_fill(self._fate[self._beam] == _DEAD, -torch.inf).view(samples, -1)
        scores, places = scores.topk(min(width, scores.shape[1]), dim=1)
        nodes = self._beam.gather(1, places.div(length, rounding_mode="floor"))
        return scores, nodes * length + places % length

    def _undecided(self) -> torch.Tensor:
        """Children that the beams would hold, if they were alive; which they may be."""
        scores, children = self._best(self._beam_size)
        fates = self._fate.view(-1)[children]
        if not ((fates < _ALIVE) & (scores > -torch.inf)).any():
            return children.new_empty(0)
        if self._rounds:
            scores, children = self._best(self._beam_size << min(self._rounds, 16))
            fates = self._fate.view(-1)[children]
        reachable = scores > -torch.inf
        unknown, _ = _distinct(children[reachable & (fates == _UNKNOWN)])
        counts = children[reachable & (fates == _DOUBTFUL)].bincount()
        doubtful = counts.argsort(descending=True)[: min(self._doubtful_limit, int(counts.count_nonzero()))]
        return torch.cat([unknown, doubtful])

    def _advance(self) -> None:
        """The beams of this axis are known to be alive: go on to the next axis, or end."""
        if self._axis + 1 == len(self._scores):
            scores, children = self._best(self._k_best)
            self._finish(children.masked_fill(scores == -torch.inf, -1))
            return
        self._beam_scores, children = self._best(self._beam_size)
        alive = self._beam_scores > -torch.inf
        kept, places = _distinct(children[alive])
        self._beam = torch.zeros_like(children).masked_scatter(alive, places)
        nodes, coordinates = self._nodes_and_coordinates(kept)
        self._coordinates = torch.cat([self._coordinates[nodes], coordinates[:, None]], dim=1)
        self._prefixes = [self._child(*child) for child in zip(nodes.tolist(), coordinates.tolist(), strict=True)]
        listings = [self._listings[child] for child in kept.tolist()]
        self._axis += 1
        self._rounds = 0
        length = self._scores[self._axis].shape[1]
        last = self._axis + 1 == len(self._scores)  # what is listed there are experts; nothing is left to look up
        self._fate = torch.full((max(1, len(kept)), length), _DEAD, dtype=torch.uint8, device="cpu")
        self._listings = {}
        for node, listing in enumerate(listings):
            self._fate[node, list(listing)] = _ALIVE if last else _UNKNOWN
            if last:
                self._listings.update((node * length + at, {FLAT_EXPERT: info}) for at, info in listing.items())

    def _finish(self, children: torch.Tensor) -> None:
        """End with the chosen children of each sample, -1 for none."""
        found = children >= 0
        chosen, places = _distinct(children[found])
        nodes, coordinates = self._nodes_and_coordinates(chosen)
        self._choice = Choice(
            experts=[self._listings[child][FLAT_EXPERT] for child in chosen.tolist()],
            index=torch.full_like(children, -1).masked_scatter(found, places),
            coordinates=torch.cat([self._coordinates[nodes], coordinates[:, None]], dim=1),
        )

    def _nodes_and_coordinates(self, children: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        length = self._fate.shape[1]
        return children.div(length, rounding_mode="floor"), children % length


def _distinct(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct ones of some small numbers in ascending order, and the place of each number among them."""
    there = numbers.bincount() > 0
    return there.nonzero().flatten(), (there.cumsum(0) - 1)[numbers]
