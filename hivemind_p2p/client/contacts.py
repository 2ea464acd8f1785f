"""What all modules that use one DHT know of the peers that serve experts: each learns from the others' calls."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakKeyDictionary

from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.calls import fetch_codecs
from hivemind_p2p.client.failures import RecentFailures
from hivemind_p2p.client.latency import HedgeBudget, Latencies
from hivemind_p2p.client.replicas import Balance, Replicas
from hivemind_p2p.compression import ErrorMeter
from hivemind_p2p.dht import get_dht_time
from hivemind_p2p.errors import HivemindError
from hivemind_p2p.node import Node
from hivemind_p2p.sync import DHT, portal
from hivemind_p2p.wire.peer_id import PeerID


@dataclass
class ClientStats:
    """Counts since the start: for metrics.

    Attributes:
        calls: of experts, whatever attempts they took.
        answered, failed, late: how they ended; ``late`` ones were cancelled, because nobody waited any longer.
        attempts: requests sent; more than calls where some were made again.
        hedges: second attempts beside a first one that was late.
        hedges_won: of which the answer was used.
        failovers: attempts at another replica, after a failure.
        retries: attempts at the same peer, after a failure.
        anomalies: answers with NaN or infinity, which were not used.
    """

    calls: int = 0
    answered: int = 0
    failed: int = 0
    late: int = 0
    attempts: int = 0
    hedges: int = 0
    hedges_won: int = 0
    failovers: int = 0
    retries: int = 0
    anomalies: int = 0


class Contacts:
    """See the module; :func:`contacts_of` gives the one of a DHT.

    Attributes:
        failures: the circuit breakers.
        replicas: who else serves an expert.
        balance: which of them to ask.
        latencies, hedges: when to ask a second one, and how often that may be.
        errors: what compressing the tensors that we send has cost.
        upload: bytes per second at which peers say that they get what we send.
        stats: counts.
    """

    def __init__(self) -> None:
        self.failures = RecentFailures(time.monotonic)
        self.replicas = Replicas(get_dht_time)
        self.balance = Balance(random.Random())
        self.latencies, self.hedges = Latencies(), HedgeBudget()
        self.errors = ErrorMeter()
        self.upload: dict[PeerID, float] = {}
        self.stats = ClientStats()
        self._codecs: dict[PeerID, frozenset[int]] = {}

    async def codecs_of(self, node: Node, peer_id: PeerID) -> frozenset[int]:
        """The compressions that a peer knows, asked for once; none if it is not one of ours. In the portal."""
        if peer_id not in self._codecs:
            try:
                codecs = await fetch_codecs(node.rpc, peer_id)
            except HivemindError:
                return frozenset()  # the call itself will say what is wrong there
            self._codecs[peer_id] = codecs
            forget_oldest(self._codecs)
        return self._codecs[peer_id]

    def uploaded(self, peer_id: PeerID, speed: float) -> None:
        """A peer says how fast it gets what we send."""
        self.upload.pop(peer_id, None)
        self.upload[peer_id] = speed
        forget_oldest(self.upload)

    def avoids(self, expert: ExpertInfo) -> bool:
        """Whether the peer failed a moment ago, and all others that serve this expert, as far as we know."""
        return expert in self.failures and all(
            replica.info in self.failures for replica in self.replicas.of(expert.uid)
        )

    def learn_replicas(self, node: Node, uids: list[str]) -> None:
        """Look up the replicas of experts of which nothing is known, while the calls go on. In the portal."""
        unknown = self.replicas.unknown(uids)

        async def fetch() -> None:
            with suppress(HivemindError):  # they are looked up again with the next batch
                await self.replicas.fetch(node.dht, unknown)

        if unknown:
            portal().submit(fetch)

    def __deepcopy__(self, memo: object) -> Self:
        """Itself: copies of modules learn from each other's calls, too."""
        return self

    def __repr__(self) -> str:
        return f"<Contacts: {self.failures!r}, {self.replicas!r}, {self.stats!r}>"


def forget_oldest(known: dict[Any, Any], most: int = 4096) -> None:
    """Keep a dictionary of what we know of peers from growing without end."""
    while len(known) > most:
        del known[next(iter(known))]


_contacts: WeakKeyDictionary[DHT, Contacts] = WeakKeyDictionary()
_lock = threading.Lock()


def contacts_of(dht: DHT) -> Contacts:
    """What the clients of this DHT know. Used by several threads at once."""
    with _lock:
        return _contacts.setdefault(dht, Contacts())


def client_stats(dht: DHT) -> ClientStats:
    """Counts of all the calls of experts that went through this DHT's node."""
    return contacts_of(dht).stats
