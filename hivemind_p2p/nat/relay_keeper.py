"""Holding reservations: at two relays while others cannot dial us, renewed before they end, replaced when lost."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import NATSettings
from hivemind_p2p.errors import HivemindError, TransportError
from hivemind_p2p.nat.relay_candidates import RelayCandidates
from hivemind_p2p.nat.relay_client import RelayClient, Reservation
from hivemind_p2p.nat.relay_service import HOP
from hivemind_p2p.transport.addresses import circuit_of, endpoint_of, is_loopback, is_public, with_peer
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.transport.connection import MuxedConnection
    from hivemind_p2p.transport.host import Host

logger = logging.getLogger(__name__)
_RENEW_AT: Final = 0.6
"""The part of a reservation's time after which it is renewed: the rest is for a relay that does not answer at once."""


_CHANGING: Final = 10.0
"""Seconds for which a change of network goes on."""


class _Gone(TransportError):
    """A connection that carried a reservation is gone."""


class RelayKeeper:
    """Reservations of one host; :meth:`run` keeps them.

    Args:
        changed: called when the reservations held are others than before.
    """

    def __init__(self, host: Host, client: RelayClient, settings: NATSettings, changed: Callable[[], None]) -> None:
        self.candidates = RelayCandidates(retry=settings.relay_retry, retry_max=settings.relay_retry_max)
        self.held: dict[PeerID, Reservation] = {}
        """Reservations by relay, the oldest first."""
        self.wanted = settings.relays
        """How many to hold; :meth:`want` changes it."""
        self._host = host
        self._client = client
        self._settings = settings
        self._changed = changed
        self._asked: dict[PeerID, trio.CancelScope] = {}
        self._poked = trio.Event()
        self._progress = trio.Event()
        self._is_at_home = False
        self._changed_at = -math.inf

    @property
    def maddrs(self) -> Sequence[Multiaddr]:
        """Our circuit addresses, without the last ``/p2p``; every relay's first one before any second one."""
        lists = [reservation.maddrs for reservation in self.held.values()]
        turns = range(max(map(len, lists), default=0))
        return [maddrs[turn] for turn in turns for maddrs in lists if turn < len(maddrs)]

    def want(self, count: int) -> None:
        """Hold so many reservations from now on; those that are too many are left to end."""
        self.wanted = count
        for relay in list(self._asked)[count:]:
            self._asked[relay].cancel()
        self._poke()

    def network_changed(self) -> None:
        """Relays that are lost now, or were not reached before, are not to blame for it; nor is anybody near."""
        self._changed_at = trio.current_time()
        self.candidates.forgive()
        self._is_at_home = False
        self._poke()

    def met(self, connection: MuxedConnection) -> None:
        """A peer said who it is: it may be a relay."""
        speaks = connection.description is not None and HOP in connection.description.protocols
        if speaks and connection.relay is None and self.candidates.add(connection.peer_id, given=False):
            self._poke()

    def given(self, peer_id: PeerID) -> None:
        """A peer that is a relay, as far as we are told."""
        if self.candidates.add(peer_id, given=True):
            self._poke()

    async def settled(self) -> None:
        """Wait until a relay serves us, or every one that we know of was asked and does not, or one of them finds us
        in its own network: then there is no hurry."""
        while self.wanted and not self.held and not self._is_at_home and self._is_trying():
            await self._progress.wait()

    def _is_trying(self) -> bool:
        return bool(self._asked) or self.candidates.next(trio.current_time(), ()) is not None

    async def run(self) -> None:
        """Keep the reservations; never returns."""
        async with trio.open_nursery() as nursery:
            while True:
                self._poked = trio.Event()
                relay = self.candidates.next(trio.current_time(), self._asked) if self._short() else None
                if relay is not None:
                    self._asked[relay] = trio.CancelScope()
                    nursery.start_soon(self._keep, relay, self._asked[relay])
                    continue
                again = self.candidates.next_time(self._asked) if self._short() else None
                with trio.move_on_at(again if again is not None else float("inf")):
                    await self._poked.wait()

    def _short(self) -> bool:
        return len(self._asked) < self.wanted

    def _poke(self) -> None:
        self._poked.set()

    async def _keep(self, relay: PeerID, scope: trio.CancelScope) -> None:
        """Hold a reservation at one relay for as long as it lasts."""
        try:
            with scope:
                while True:
                    connection = await self._connect(relay)
                    reservation = await self._client.reserve(connection)
                    self.candidates.succeeded(relay)
                    if self.held.get(relay) != reservation:
                        logger.debug("reached through the relay %s for %.0f s", relay, reservation.seconds)
                        self.held[relay] = reservation
                        self._changed()
                        self._step()
                    with trio.move_on_after(_RENEW_AT * reservation.seconds):
                        await connection.ended.wait()
                        raise _Gone("the connection to it is gone")
        except HivemindError as error:
            logger.debug("not reached through the relay %s: %s", relay, error)
            now = trio.current_time()
            if not isinstance(error, _Gone) or now - self._changed_at > _CHANGING:
                self.candidates.failed(relay, now)
            self._client.relays.discard(relay)  # one that is only not needed any more may still bring circuits
        finally:
            del self._asked[relay]
            if self.held.pop(relay, None) is not None:
                self._changed()
            self._step()
            self._poke()

    def _step(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

    async def _connect(self, relay: PeerID) -> MuxedConnection:
        """A direct connection to a relay that says it is one."""
        connection = self._direct(relay)
        if connection is None:
            direct = [maddr for maddr in self._host.addresses(relay) if circuit_of(maddr) is None]
            if not direct:
                raise TransportError("no address of it is known")
            await self._host.connect(with_peer(direct[0], relay))
            connection = self._direct(relay)
            if connection is None:
                raise TransportError("it is only reached through a relay itself")
        with trio.move_on_after(self._settings.relay_timeout):
            await connection.identified.wait()
        if connection.description is not None and HOP not in connection.description.protocols:
            raise TransportError("it is no relay")
        if self._is_near(connection):
            self._is_at_home = True
            raise TransportError("it is in our own network, where others dial us directly")
        return connection

    def _is_near(self, connection: MuxedConnection) -> bool:
        """Whether the relay sees us at a private address of this very machine: there is no NAT between us."""
        seen = connection.description.observed if connection.description is not None else None
        endpoint = endpoint_of(seen) if seen is not None and not is_public(seen) else None
        if seen is None or endpoint is None:
            return False
        own = (endpoint_of(maddr) for maddr in self._host.listen_maddrs)
        return is_loopback(seen) or any(each is not None and each.host == endpoint.host for each in own)

    def _direct(self, relay: PeerID) -> MuxedConnection | None:
        return next((each for each in self._host.connections(relay) if each.relay is None), None)

    def __repr__(self) -> str:
        return f"<RelayKeeper: {len(self.held)} of {self.wanted} reservations>"
