"""Experts as the DHT tells them: uids to peers, prefixes to what they list. Anybody may have stored anything there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from hivemind_p2p.client.beam_search import ExpertInfo, Listing
from hivemind_p2p.dht import DHTNode
from hivemind_p2p.kademlia import ValueWithExpiration
from hivemind_p2p.wire.expert_uid import is_valid_uid
from hivemind_p2p.wire.peer_id import MAX_TEXT, PeerID

MAX_LISTINGS: Final = 65_536


async def find_experts(
    dht: DHTNode, uids: Sequence[str], expiration_time: float | None = None, *, latest: bool = False
) -> list[ExpertInfo | None]:
    """Who serves these experts, in one look-up; None for uids that nobody serves.

    Args:
        expiration_time: Unix time; declarations that expire earlier do not count. Default: now.
        latest: ask all the nodes near each uid, and take the declaration that expires last.
    """
    found = await dht.get_many(list(dict.fromkeys(uids)), float("inf") if latest else expiration_time)
    experts: list[ExpertInfo | None] = []
    for uid in uids:
        record, peer_id = found[uid], None
        if record is not None and (expiration_time is None or record.expiration_time >= expiration_time):
            peer_id = peer_id_from(record.value)
        experts.append(None if peer_id is None else ExpertInfo(uid, peer_id))
    return experts


def listing_from(value: object) -> dict[int, ExpertInfo]:
    """What a record under a prefix lists: coordinates, and for each an expert that has it. Garbage is left out."""
    listing = {}
    if isinstance(value, dict):
        for coordinate, entry in value.items():
            if type(coordinate) is not int or not isinstance(entry, ValueWithExpiration):
                continue
            match entry.value:
                case [str() as uid, text] if is_valid_uid(uid) and (peer_id := peer_id_from(text)) is not None:
                    listing[coordinate] = ExpertInfo(uid, peer_id)
    return listing


def _entries(value: dict[Any, Any]) -> Iterator[ValueWithExpiration[Any]]:
    return (entry for entry in value.values() if isinstance(entry, ValueWithExpiration))


def peer_id_from(text: object) -> PeerID | None:
    """The peer id of its base58 text; None if it is none."""
    return _peer_id_from(text) if isinstance(text, str) and len(text) <= MAX_TEXT else None


@lru_cache(maxsize=4096)
def _peer_id_from(text: str) -> PeerID | None:
    try:
        return PeerID.from_base58(text)
    except ValueError:
        return None


class _Known(NamedTuple):
    listing: Listing
    until: float


class Listings:
    """What the DHT lists under the prefixes of a grid, remembered for a while. Used by several threads at once.

    Args:
        clock: Unix time in seconds.
        found_for: seconds for which a listing is believed; less where its entries expire sooner.
        absent_for: seconds for which it is believed that a prefix lists nothing; 0 is never.
    """

    def __init__(self, clock: Callable[[], float], *, found_for: float, absent_for: float) -> None:
        self._clock = clock
        self._found_for, self._absent_for = found_for, absent_for
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._doubted: set[str] = set()

    def recall(self, prefixes: Iterable[str]) -> tuple[dict[str, Listing], list[str]]:
        """What is remembered, and the prefixes of which nothing is."""
        now = self._clock()
        most = now + max(self._found_for, self._absent_for)  # beyond it, if the clock was put back
        known: dict[str, Listing] = {}
        missing = []
        with self._lock:
            for prefix in prefixes:
                entry = self._known.get(prefix)
                if entry is None or not now < entry.until <= most:
                    missing.append(prefix)
                else:
                    known[prefix] = entry.listing
        return known, missing

    async def fetch(self, dht: DHTNode, prefixes: Collection[str]) -> dict[str, Listing]:
        """Look prefixes up, in one bulk look-up, and remember what was found."""
        with self._lock:
            doubted = self._doubted.intersection(prefixes)
            self._doubted -= doubted
        records: dict[str, Any] = {}
        for group, sufficient in ((doubted, float("inf")), (set(prefixes) - doubted, None)):
            if group:
                records.update(await dht.get_many(group, sufficient))
        now = self._clock()
        found: dict[str, Listing] = {}
        with self._lock:
            for prefix, record in records.items():
                found[prefix] = listing = listing_from(record.value) if record is not None else {}
                until = now + self._absent_for
                if listing:
                    until = min(now + self._found_for, *(entry.expiration_time for entry in _entries(record.value)))
                self._known.pop(prefix, None)
                if until > now:
                    self._known[prefix] = _Known(listing, until)
            while len(self._known) > MAX_LISTINGS:
                del self._known[next(iter(self._known))]
        return found

    def doubt(self, prefix: str) -> None:
        """Something listed there was not so: next time, ask for the latest instead of what our DHT node remembers."""
        with self._lock:
            if self._known.pop(prefix, None) is not None:
                self._doubted.add(prefix)

    def __repr__(self) -> str:
        return f"<Listings of {len(self._known)} prefixes>"
