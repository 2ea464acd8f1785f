"""``NAT``: everything about being reached, composed: relays used and served, hole punching, what others see of us."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.background import Background
from hivemind_p2p.config import NATSettings, RelaySettings
from hivemind_p2p.nat import punch_targets
from hivemind_p2p.nat.autonat import AutoNAT
from hivemind_p2p.nat.examine import examine
from hivemind_p2p.nat.facts import Facts
from hivemind_p2p.nat.hole_punching import HolePuncher
from hivemind_p2p.nat.observed import ObservedAddresses
from hivemind_p2p.nat.port_mapping import PortMapping
from hivemind_p2p.nat.reachability import Verdict
from hivemind_p2p.nat.relay_client import RelayClient
from hivemind_p2p.nat.relay_keeper import RelayKeeper
from hivemind_p2p.nat.relay_service import RelayService
from hivemind_p2p.nat.roaming import Roaming
from hivemind_p2p.transport.addresses import circuit_of, endpoint_of, is_public, split_peer
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.transport.connection import MuxedConnection
    from hivemind_p2p.transport.host import Host

logger = logging.getLogger(__name__)
_ALONE: Final = 5.0
"""Seconds after which a node without initial peers asks its router for a port."""
_BELIEVED_EVERY: Final = 30.0
"""Seconds between two times that what a peer sees makes us ask all others anew: one that lies does it all the time."""


class NAT(Background):
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
        self.service = RelayService(host, host.identity, self.relay_settings)
        self.client = RelayClient(host, timeout=self.settings.relay_timeout, taken=self._taken)
        self.keeper = RelayKeeper(host, self.client, self.settings, self._announce)
        self.puncher = HolePuncher(host, self.settings, self._offer)
        self.autonat = AutoNAT(host, self.settings, self._decide)
        self.mapping = PortMapping(self.settings, self._private_listener, self._mapping_changed)
        self.roaming = Roaming(host, self._forget_network, self._begin_anew)
        self._host = host
        self._watched: set[MuxedConnection] = set()
        self._asked_anew_at = -math.inf
        self._initial_peers = [split_peer(maddr) for maddr in initial_peers]

    async def _begin(self, nursery: trio.Nursery) -> None:
        self._host.on_identified = self._identified
        self.client.start()
        if self.settings.hole_punching:
            self.puncher.start()
        self._decide()
        nursery.start_soon(self.keeper.run)
        if self._host.is_of_this_machine:
            nursery.start_soon(self.roaming.run)
        if self.settings.port_mapping and self._host.listen_maddrs:
            nursery.start_soon(self.mapping.run)
            if not self._initial_peers and self._private_listener() is not None:
                nursery.start_soon(self._map_unasked)
        if self.settings.autonat:
            self.autonat.start()
            nursery.start_soon(self.autonat.run)

    async def _end(self) -> None:
        assert self._nursery is not None
        self._host.on_identified = lambda connection: None
        self.client.stop()
        self.puncher.stop()
        self.autonat.stop()
        self.service.stop()
        self._nursery.cancel_scope.cancel()  # nobody asks for the port again
        self._nursery = None
        await self.mapping.withdraw()

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
            now = trio.current_time()
            if self.observed.add(connection.peer_id, said.observed, now, dialled) and len(self.observed.ips(now)) > 1:
                if now - self._asked_anew_at >= _BELIEVED_EVERY:
                    self._asked_anew_at = now
                    self.autonat.forget()  # we have several ways out, or the network changed
                if len(self.observed.public_ips_like(said.observed, now)) > 1:
                    self.roaming.suspect()  # the router has another address outside
            if is_public(said.observed) and not self._is_own(said.observed):
                self.mapping.needed.set()
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
        what a router forwards, as it says or as the user does by having us announce it."""
        now = trio.current_time()
        verdict = self.autonat.reachability.verdict
        lasting = [*self._host.listen_maddrs, *self.autonat.mapped, *self._host.announce_maddrs]
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
        self._host.set_extra_maddrs([*self.autonat.mapped, *self.keeper.maddrs])

    def _private_listener(self) -> tuple[str, int] | None:
        """Where we listen behind a NAT, if there is one: a private IPv4 address of this machine."""
        for maddr in self._host.listen_maddrs:
            endpoint = endpoint_of(maddr)
            ip = endpoint.ip if endpoint is not None else None
            if endpoint is not None and isinstance(ip, IPv4Address) and not (ip.is_global or ip.is_loopback):
                return endpoint.host, endpoint.port
        return None

    def _is_own(self, maddr: Multiaddr) -> bool:
        endpoint = endpoint_of(maddr)
        own = (endpoint_of(each) for each in self._host.listen_maddrs)
        return endpoint is not None and any(each is not None and each.host == endpoint.host for each in own)

    async def _map_unasked(self) -> None:
        """The first node of a swarm has nobody to tell it that there is a NAT."""
        await trio.sleep(_ALONE)
        if not any(is_public(maddr) for maddr in self._host.listen_maddrs):
            self.mapping.needed.set()

    def _forget_network(self) -> None:
        """The network changed: no evidence of the old one counts."""
        self.autonat.forget()
        self.puncher.forget()
        self.mapping.network_changed()
        self.keeper.network_changed()
        self._decide()

    def _begin_anew(self) -> None:
        """The connections that are left lead through the new network."""
        direct = {connection.peer_id for connection in self._host.connections() if connection.relay is None}
        self.observed.keep(direct)
        self._host.push_identify()
        self._ask_all()

    def _mapping_changed(self) -> None:
        held = self.mapping.held
        self.autonat.mapped = () if held is None else (held.maddr,)
        self._announce()
        self._decide()
        self.autonat.ask_anew()
        self._ask_all()

    def _ask_all(self) -> None:
        """Have those whom we are connected to try where we are reached."""
        if self._nursery is not None and self.settings.autonat:
            for connection in self._host.connections():
                if connection.relay is None:
                    self._nursery.start_soon(self.autonat.ask, connection)

    def _offer(self) -> list[Multiaddr]:
        seen = self.observed.maddrs(trio.current_time())
        return punch_targets.offer(self._host.listen_maddrs, [*self.autonat.mapped, *seen])

    def __repr__(self) -> str:
        return f"<NAT, {len(self.keeper.held)} relays, {self.service!r}, {self.puncher!r}>"
