"""When this machine comes to another network: what was known is dropped, what is dead is ended, peers are met again.

A laptop moves to another WLAN, a cable is pulled, a VPN comes up, the provider gives the router another address. TCP
itself would go on trying for a quarter of an hour, and nobody could tell that we are somewhere else. So:

1. Every two seconds we look where we are. That the router has another address outside is first seen by a peer; as a
   peer may lie, that is believed now and then only.
2. Connections from an address that we lost are ended at once, others if the peer does not answer within seconds. Calls
   on them fail with ``ConnectionLost``.
3. Whatever was found out about our addresses, ports and NATs in the old network counts no more.
4. The peers that were lost are dialled again, those that were used last first: to them we are dead until they hear from
   us. In the swarm we make known where we are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.errors import HivemindError
from hivemind_p2p.nat.surroundings import Change, ChangeDetector, Surroundings, look_around
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.transport.host import Host

logger = logging.getLogger(__name__)
_EVERY: Final = 2.0
"""Seconds between two looks."""
_BELIEVED_EVERY: Final = 30.0
"""Seconds between two times that what peers say makes us start anew: one that lies makes us do so again and again."""
_MOST_PEERS: Final = 128
_AT_ONCE: Final = 8
_PATIENCE: Final = 30.0
"""Seconds for one peer to be met again."""


class Roaming:
    """Keeps one host reachable from network to network; :meth:`run` does it.

    Args:
        forget: called once it is known that the network is another one, before anything else is done.
        gone: called when the connections that are dead have been ended.
        look: where the machine is; raises OSError when it cannot tell.
    """

    def __init__(
        self,
        host: Host,
        forget: Callable[[], None],
        gone: Callable[[], None],
        look: Callable[[], Surroundings] = look_around,
    ) -> None:
        self.changes = 0
        """How often the network changed."""
        self.announce: Callable[[], Awaitable[None]] | None = None
        """Makes known in the swarm where we are; cancelled when the network changes again."""
        self._host = host
        self._forget = forget
        self._gone = gone
        self._look = look
        self._suspicious = trio.Event()

    def suspect(self) -> None:
        """Something else says that we are reached somewhere else than before. It may have to wait for its turn."""
        self._suspicious.set()

    async def run(self) -> None:
        """Look, and do what is needed; never returns."""
        detector = ChangeDetector(self._where() or Surroundings())
        believed_from = -math.inf
        async with trio.open_nursery() as nursery:
            afterwards = trio.CancelScope()
            while True:
                with trio.move_on_after(_EVERY):
                    await trio.sleep_until(believed_from)
                    await self._suspicious.wait()
                now = trio.current_time()
                seen = self._where()
                change = detector.saw(seen, now) if seen is not None else Change.NOTHING
                if self._suspicious.is_set() and now >= believed_from:
                    self._suspicious, believed_from = trio.Event(), now + _BELIEVED_EVERY
                    change = Change.NETWORK
                if change is Change.NOTHING:
                    continue
                if change is Change.ADDRESSES:
                    logger.debug("this machine has other addresses than before")
                    await self._host.network_changed()
                    self._host.push_identify()
                    continue
                afterwards.cancel()
                lost = await self._settle(detector)
                afterwards = trio.CancelScope()
                nursery.start_soon(self._meet_again, lost, afterwards)

    def _where(self) -> Surroundings | None:
        """Where this machine is; None: that cannot be found out now."""
        try:
            return self._look()
        except OSError as error:
            logger.debug("in which network this machine is cannot be found out: %s", error)
            return None

    async def _settle(self, detector: ChangeDetector) -> list[PeerID]:
        """Leave the old network behind; the peers that were lost with it."""
        self.changes += 1
        logger.info("this machine is in another network now: %r", detector)
        self._forget()
        gone = await self._host.network_changed()
        self._gone()
        connected = {connection.peer_id for connection in self._host.connections()}
        lost = dict.fromkeys(connection.peer_id for connection in gone if connection.peer_id not in connected)
        logger.debug("%d connections are gone, and with them %d peers", len(gone), len(lost))
        return list(lost)[:_MOST_PEERS]

    async def _meet_again(self, peers: Sequence[PeerID], scope: trio.CancelScope) -> None:
        room = trio.CapacityLimiter(_AT_ONCE)

        async def meet(peer_id: PeerID) -> None:
            async with room:
                try:
                    with trio.move_on_after(_PATIENCE):
                        await self._host.connect(Multiaddr(f"/p2p/{peer_id.base58}"))
                except HivemindError as error:
                    logger.debug("not met again after the network changed: %s", error)

        with scope:
            async with trio.open_nursery() as nursery:
                if self.announce is not None:
                    nursery.start_soon(self.announce)
                for peer_id in peers:
                    nursery.start_soon(meet, peer_id)

    def __repr__(self) -> str:
        return f"<Roaming, the network changed {self.changes} times>"
