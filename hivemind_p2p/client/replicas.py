"""The servers of one expert: who they are, as the DHT says, and which of them to ask."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.lookup import peer_id_from
from hivemind_p2p.dht import DHTNode
from hivemind_p2p.kademlia import ValueWithExpiration
from hivemind_p2p.wire.expert_uid import replicas_key
from hivemind_p2p.wire.peer_id import PeerID

BELIEVED_FOR: Final = 30.0
MAX_UIDS: Final = 16_384
MAX_REPLICAS: Final = 64
"""Of one expert that are looked at; anybody can write there."""
_FORGIVING: Final = 0.9
_MEMORY: Final = 0.8
"""How much of what we knew of a peer's speed stays when something new is learned."""


class Replica(NamedTuple):
    """A server of an expert, as it declared itself.

    Attributes:
        updates: optimizer steps that it had made by then; None: it did not say. Beside those of other replicas it tells
            how stale this one is.
    """

    info: ExpertInfo
    updates: int | None


def replicas_from(uid: str, value: object) -> tuple[Replica, ...]:
    """What a record lists, those that are declared for longest first. Garbage is left out."""
    found: list[tuple[float, Replica]] = []
    for peer, entry in value.items() if isinstance(value, dict) else ():
        if isinstance(entry, ValueWithExpiration) and isinstance(entry.value, dict):
            peer_id, updates = peer_id_from(peer), entry.value.get("updates")
            if peer_id is not None:
                known = updates if type(updates) is int and updates >= 0 else None
                found.append((entry.expiration_time, Replica(ExpertInfo(uid, peer_id), known)))
    found.sort(key=lambda each: -each[0])
    return tuple(replica for _, replica in found[:MAX_REPLICAS])


class Replicas:
    """What the DHT says of the replicas of experts, remembered for :data:`BELIEVED_FOR` seconds. For the portal.

    Args:
        clock: Unix time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[str, tuple[tuple[Replica, ...], float]] = {}
        self._asking: set[str] = set()

    def of(self, uid: str) -> tuple[Replica, ...]:
        """Those that are remembered; none where nothing is."""
        return self._known.get(uid, ((), 0.0))[0]

    def unknown(self, uids: Iterable[str]) -> list[str]:
        """Of which nothing is remembered, or nothing recent, and nobody is asking."""
        now = self._clock()
        most = now + BELIEVED_FOR  # beyond it, if the clock was put back
        return [uid for uid in uids if uid not in self._asking and not now < self._known.get(uid, ((), 0.0))[1] <= most]

    async def fetch(self, dht: DHTNode, uids: Collection[str], *, latest: bool = False) -> None:
        """Look them up, in one bulk look-up.

        Args:
            latest: ask past what our DHT node remembers.
        """
        keys = {replicas_key(uid): uid for uid in uids}
        self._asking.update(uids)
        try:
            found: Mapping[Any, Any] = await dht.get_many(list(keys), float("inf") if latest else None)
        finally:
            self._asking.difference_update(uids)
        until = self._clock() + BELIEVED_FOR
        for key, uid in keys.items():
            record = found[key]
            self._known.pop(uid, None)
            self._known[uid] = (() if record is None else replicas_from(uid, record.value)), until
        while len(self._known) > MAX_UIDS:
            del self._known[next(iter(self._known))]

    def __repr__(self) -> str:
        return f"<Replicas of {len(self._known)} experts>"


class Balance:
    """Spreads calls over replicas: of two at random, the one that is less busy, by our own experience.

    That is enough to avoid the busiest, and does not send everybody to the one that looks best at the moment
    (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).

    Args:
        random: draws the two.
    """

    def __init__(self, random: random.Random) -> None:
        self._random = random
        self._seconds: dict[PeerID, float] = {}
        self._under_way: dict[PeerID, int] = {}

    def began(self, peer_id: PeerID) -> None:
        """A call is under way."""
        self._under_way[peer_id] = self._under_way.get(peer_id, 0) + 1

    def ended(self, peer_id: PeerID, seconds: float) -> None:
        """It is over, and took this long."""
        left = self._under_way.pop(peer_id) - 1
        if left:
            self._under_way[peer_id] = left
        before = self._seconds.pop(peer_id, seconds)
        self._seconds[peer_id] = _MEMORY * before + (1 - _MEMORY) * seconds
        if len(self._seconds) > MAX_UIDS:
            del self._seconds[next(iter(self._seconds))]

    def choose(self, replicas: Sequence[ExpertInfo]) -> ExpertInfo:
        """One of some replicas. What made another one look worse is forgotten by and by: it may not be so any more."""
        some = self._random.sample(replicas, min(2, len(replicas)))
        some.sort(key=lambda each: self._cost(each.peer_id))
        for other in some[1:]:
            if other.peer_id in self._seconds:
                self._seconds[other.peer_id] *= _FORGIVING
        return some[0]

    def _cost(self, peer_id: PeerID) -> float:
        """The seconds that a call would wait there, roughly; who is not known is tried."""
        return self._seconds.get(peer_id, 0.0) * (1 + self._under_way.get(peer_id, 0))

    def __repr__(self) -> str:
        return f"<Balance: {sum(self._under_way.values())} calls under way, {len(self._seconds)} peers known>"
