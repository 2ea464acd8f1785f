"""What peers in memory share: where they are, how long things travel, and who reaches whom."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.testing.network import MemoryNetwork

_ED25519: Final = b"\x00\x24\x08\x01\x12\x20"


class World:
    """A place for :class:`MemoryNetwork` objects. Everything that is random here comes from ``seed``.

    Args:
        latency: seconds that bytes travel one way.
        jitter: seconds that they may take longer, evenly spread. Streams keep their order.
        loss: the chance of a piece of a stream to be lost on its way. As with TCP, it is not missing but late.
        retransmit_after: seconds after which what was lost is sent again; doubles when that is lost too.
        seed: of the random generator.
        settings: of every network that is not given others: when dials end, when a silent connection is given up.
    """

    def __init__(
        self,
        *,
        latency: float = 0.01,
        jitter: float = 0.0,
        loss: float = 0.0,
        retransmit_after: float = 0.2,
        seed: int = 0,
        settings: TransportSettings | None = None,
    ) -> None:
        self.latency, self.jitter = latency, jitter
        self.loss, self.retransmit_after = loss, retransmit_after
        self.random = random.Random(seed)
        self.settings = settings if settings is not None else TransportSettings()
        self._numbers = itertools.count(1)
        self._running: dict[PeerID, MemoryNetwork] = {}
        self._listening: dict[Multiaddr, MemoryNetwork] = {}
        self._dead: set[PeerID] = set()
        self._parts: dict[PeerID, int] = {}

    def network(self, *, listen: bool = True, settings: TransportSettings | None = None) -> MemoryNetwork:
        """A new peer's network; peers are numbered, and so have the same ids and addresses in every run.

        Args:
            listen: whether others can dial it.
        """
        from hivemind_p2p.testing.network import MemoryNetwork  # it needs us

        number = next(self._numbers)
        peer_id = PeerID(_ED25519 + number.to_bytes(32, "big"))
        maddr = Multiaddr(f"/ip4/10.{number // 65536}.{number // 256 % 256}.{number % 256}/tcp/1")
        return MemoryNetwork(self, peer_id, maddr, listen=listen, settings=settings or self.settings)

    def kill(self, network: MemoryNetwork) -> None:
        """Pull the plug: nothing that it says gets out any more and nothing reaches it, without anybody being told."""
        self._dead.add(network.peer_id)
        network.world_changed()

    def partition(self, *parts: Iterable[MemoryNetwork]) -> None:
        """From now on nobody reaches anybody of another part. Those who are in no part are in one together.

        What is on its way waits for :meth:`heal`, unless the connection is given up before.
        """
        self._parts = {network.peer_id: number for number, part in enumerate(parts, 1) for network in part}
        self._changed()

    def heal(self) -> None:
        """End the partition. The dead stay dead."""
        self._parts = {}
        self._changed()

    def reachable(self, one: PeerID, other: PeerID) -> bool:
        """Whether bytes get from one peer to another, and back."""
        if one in self._dead or other in self._dead:
            return False
        return self._parts.get(one, 0) == self._parts.get(other, 0)

    def travel_time(self) -> float:
        """How long the next piece takes one way, in seconds."""
        seconds, again = self.latency, self.retransmit_after
        if self.jitter:
            seconds += self.jitter * self.random.random()
        while self.loss and self.random.random() < self.loss:
            seconds += again
            again *= 2
        return seconds

    # Networks call these.

    def arrived(self, network: MemoryNetwork, *, listening: bool) -> None:
        """A network runs from now on."""
        self._running[network.peer_id] = network
        if listening:
            self._listening[network.maddr] = network

    def left(self, network: MemoryNetwork) -> None:
        """A network runs no more."""
        self._running.pop(network.peer_id, None)
        self._listening.pop(network.maddr, None)

    def listener(self, maddr: Multiaddr) -> MemoryNetwork | None:
        """Who listens at an address."""
        return self._listening.get(maddr)

    def _changed(self) -> None:
        for network in self._running.values():
            network.world_changed()

    def __repr__(self) -> str:
        return f"<World of {len(self._running)} peers, {len(self._dead)} dead, {len(set(self._parts.values()))} parts>"
