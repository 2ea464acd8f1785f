"""``NAT``: everything about being reached, composed: relays used and served, hole punching, what others see of us."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import NATSettings, RelaySettings
from hivemind_p2p.errors import NodeClosed
from hivemind_p2p.nat import punch_targets
from hivemind_p2p.nat.autonat import AutoNAT
from hivemind_p2p.nat.examine import examine
from hivemind_p2p.nat.facts import Facts
from hivemind_p2p.nat.hole_punching import HolePuncher
from hivemind_p2p.nat.observed import ObservedAddresses
from hivemind_p2p.nat.reachability import Verdict
from hivemind_p2p.nat.relay_client import RelayClient
from hivemind_p2p.nat.relay_keeper import RelayKeeper
from hivemind_p2p.nat.relay_service import RelayService
from hivemind_p2p.transport.addresses import circuit_of, split_peer
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.transport.connection import MuxedConnection
    from hivemind_p2p.transport.host import Host

logger = logging.getLogger(__name__)


class NAT:
    """How one host is reached: ``async with NAT(host, ...) as nat``, while the host runs.

    Args:
        initial_peers: addresses of peers that may be relays, each ending in ``/p2p/<peer id>``.
    """

    def __init__(
        self,
        host: Host,
        settings: NATSettings | None = None,
        relay_settings: RelaySettings | None = None,
        *,
        initial_peers: Iterable[Multiaddr] = (),
    ) -> None:
        self.settings = settings if settings is not None else NATSettings()
        self.relay_settings = relay_settings if relay_settings is not None else RelaySettings()
        self.observed = ObservedAddresses()
        self.service = RelayService(host, self.relay_settings)
        self.client = RelayClient(host, timeout=self.settings.relay_timeout, taken=self._taken)
        self.keeper = RelayKeeper(host, self.client, self.settings, self._announce)
        self.puncher = HolePuncher(host, self.settings, self._offer)
        self.autonat = AutoNAT(host, self.settings, self._decide)
        self._host = host
        self._watched: set[MuxedConnection] = set()
        self._initial_peers = [split_peer(maddr) for maddr in initial_peers]
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery, bool | None] | None = None
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        if self._nursery_manager is not None:
            raise NodeClosed("this was started before; make a new NAT instead of entering one twice")
        self._nursery_manager = trio.open_nursery()
        self._nursery = await self._nursery_manager.__aenter__()
        self._host.on_identified = self._identified
        self.client.start()
        if self.settings.hole_punching:
            self.puncher.start()
        self._decide()
        self._nursery.start_soon(self.keeper.run)
        if self.settings.autonat:
            self.autonat.start()
            self._nursery.start_soon(self.autonat.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._nursery_manager is not None
        assert self._nursery is not None
        self._host.on_identified = lambda connection: None
        self.client.stop()
        self.puncher.stop()
        self.autonat.stop()
        self.service.stop()
        self._nursery.cancel_scope.cancel()
        self._nursery = None
        if error is None or isinstance(error, Exception):
            # The caller's own exception passes by the nursery, which would wrap it in a group.
            await self._nursery_manager.__aexit__(None, None, None)
            return None
        return await self._nursery_manager.__aexit__(kind, error, trace)

    async def prepare(self, timeout: float) -> None:
        """Ask the initial peers to relay for us and wait until one does, or all have said no.

        Best effort: whoever joins the swarm next finds out what is wrong with these peers, and says so.

        Args:
            timeout: the most seconds that it may take.
        """
        known = [
            (maddr, peer_id) for maddr, peer_id in self._initial_peers if peer_id not in (None, self._host.peer_id)
        ]
        for maddr, peer_id in known:
            if peer_id is not None and circuit_of(maddr) is None:
                self._host.add_addresses(peer_id, [maddr])
                self.keeper.given(peer_id)
        with trio.move_on_after(timeout):
            await self.keeper.settled()

    @property
    def relays(self) -> Sequence[PeerID]:
        """The relays that connect others to us."""
        return list(self.keeper.held)

    async def examine(self) -> Facts:
        """What is known about how we are reached. Takes a second, for looking at the way out."""
        return await examine(self._host, self)

    def _identified(self, connection: MuxedConnection) -> None:
        """A peer said who it is, and how it sees us."""
        assert self._nursery is not None
        said = connection.description
        if connection.relay is not None or said is None:
            return
        if said.observed is not None and not connection.aside:
            dialled = connection.remote_maddr if connection.outbound else None
            is_new = self.observed.add(connection.peer_id, said.observed, trio.current_time(), dialled)
            if is_new and len(self.observed.ips(trio.current_time())) > 1:
                self.autonat.forget()  # the network changed, or we have several ways out
        if self.settings.autonat:
            self._nursery.start_soon(self.autonat.ask, connection)
        self.keeper.met(connection)
        if connection not in self._watched:
            self._watched.add(connection)
            self._nursery.start_soon(self._watch, connection)

    async def _watch(self, connection: MuxedConnection) -> None:
        await connection.ended.wait()
        self._watched.discard(connection)
        self.service.lost(connection)

    def _taken(self, connection: MuxedConnection) -> None:
        """Somebody came to us through a relay."""
        if self.settings.hole_punching and self._nursery is not None:
            self._nursery.start_soon(self.puncher.lead, connection)

    @property
    def reachable_maddrs(self) -> Sequence[Multiaddr]:
        """Addresses of ours that stay, and that a peer reached on a fresh connection: where we listen ourselves, and
        what the user has us announce, since a router forwards it."""
        now = trio.current_time()
        verdict = self.autonat.reachability.verdict
        lasting = [*self._host.listen_maddrs, *self._host.announce_maddrs]
        return [maddr for maddr in dict.fromkeys(lasting) if verdict(maddr, now) is Verdict.REACHABLE]

    def _decide(self) -> None:
        """Whether to need relays, and whether to be one, by what is known of our reachability.

        An address that a NAT gave us is no reason to do without relays, whoever reached us there: it may let in only
        whom we dialled, and forgets us when we are silent.
        """
        listens = bool(self._host.listen_maddrs)
        reachable = bool(self.reachable_maddrs)
        self.keeper.want(self.settings.relays if listens and not reachable else 0)
        serve = self.relay_settings.serve
        if listens and (serve == "always" or (serve == "auto" and (reachable or not self._initial_peers))):
            if not self.service.serving:
                self.service.start()
                self._host.push_identify()
        elif self.service.serving:
            self.service.stop()
            self._host.push_identify()

    def _announce(self) -> None:
        """Tell others where we are reached now."""
        self._host.set_extra_maddrs(self.keeper.maddrs)

    def _offer(self) -> list[Multiaddr]:
        return punch_targets.offer(self._host.listen_maddrs, self.observed.maddrs(trio.current_time()))

    def __repr__(self) -> str:
        return f"<NAT, {len(self.keeper.held)} relays, {self.service!r}, {self.puncher!r}>"
