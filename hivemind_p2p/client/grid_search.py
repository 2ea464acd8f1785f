"""The best living experts of a grid: beam search, on what the DHT lists and what we remember of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch

from hivemind_p2p.client.beam_search import BeamSearch, Choice, ExpertInfo, Listing
from hivemind_p2p.client.contacts import Contacts, contacts_of
from hivemind_p2p.client.lookup import Listings
from hivemind_p2p.dht import get_dht_time
from hivemind_p2p.errors import ConfigError
from hivemind_p2p.sync import DHT, portal
from hivemind_p2p.wire.expert_uid import FLAT_EXPERT, UID_DELIMITER, check_prefix, split_uid


class GridSearch:
    """Finds experts of one grid; used by several threads at once.

    Args:
        dht: where the experts are declared.
        uid_prefix: what their uids begin with: ``ffn.``; a missing dot is added.
        grid_size: lengths of the axes that follow.
        negative_caching: remember where nobody is, too.
        cache_expiration: seconds for which what was found is believed, and what was not.

    Attributes:
        look_ups: prefixes that were looked up in the DHT so far; the others were remembered.

    Raises:
        InvalidUID: the prefix is none.
        ConfigError: the grid has no axes, or empty ones.
    """

    def __init__(
        self,
        dht: DHT,
        uid_prefix: str,
        grid_size: Sequence[int],
        *,
        negative_caching: bool = True,
        cache_expiration: float = 15.0,
    ) -> None:
        self.dht = dht
        self.uid_prefix = check_prefix(uid_prefix if uid_prefix.endswith(UID_DELIMITER) else uid_prefix + UID_DELIMITER)
        self.grid_size = tuple(grid_size)
        if not self.grid_size or min(self.grid_size) < 1:
            raise ConfigError(f"grid_size = {self.grid_size} is no grid: give the length of each axis, like (16, 16)")
        self.total_grid_size = sum(self.grid_size)
        absent_for = cache_expiration if negative_caching else 0.0
        self.listings = Listings(get_dht_time, found_for=cache_expiration, absent_for=absent_for)
        self.contacts = contacts_of(dht)
        self.look_ups = 0

    def search(self, scores: Sequence[torch.Tensor], k_best: int, *, k_min: int = 0) -> Choice:
        """The best experts for each sample.

        Args:
            scores: one float tensor ``[samples, length]`` per axis, on the CPU.
            k_best: how many to find.
            k_min: experts that failed a moment ago are left out, unless a sample would find fewer than this.
        """
        failures = self.contacts.failures
        choice = self._search(scores, k_best, self.contacts if failures else None)
        if k_min and failures and ((choice.index >= 0).sum(dim=1) < k_min).any():
            return self._search(scores, k_best, None)
        return choice

    def doubt(self, expert: ExpertInfo) -> None:
        """A call failed, or came too late: look the expert up anew."""
        prefix, _ = split_uid(expert.uid)
        self.listings.doubt(prefix if len(self.grid_size) > 1 else expert.uid + UID_DELIMITER)

    def _search(self, scores: Sequence[torch.Tensor], k_best: int, avoid: Contacts | None) -> Choice:
        search = BeamSearch(self.uid_prefix, scores, k_best)
        while wanted := search.wanted():
            found, missing = self.listings.recall(wanted)
            if missing:
                self.look_ups += len(missing)
                found.update(portal().call(self.listings.fetch, self.dht.node.dht, missing))
            search.feed(_without(avoid, found) if avoid else found)
        return search.result()

    def __deepcopy__(self, memo: object) -> Self:
        """Itself: copies of a mixture share what was found."""
        return self

    def __repr__(self) -> str:
        return f"<GridSearch of {self.uid_prefix}{'.'.join(f'[0:{length}]' for length in self.grid_size)}>"


def _without(avoid: Contacts, listings: Mapping[str, Listing]) -> dict[str, Listing]:
    """The listings without experts to avoid. An entry that is only an example of what lies behind it stays."""
    return {
        prefix: {
            at: info
            for at, info in listing.items()
            if not avoid.avoids(info) or not (at == FLAT_EXPERT or info.uid == f"{prefix}{at}")
        }
        for prefix, listing in listings.items()
    }
