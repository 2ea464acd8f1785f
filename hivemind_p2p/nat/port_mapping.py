"""Port mapping: while a NAT is in front of us, its router is asked to forward the port that we listen on.

In the background, never in the way of anything: asked for once we know that there is a NAT, renewed long before its
time, asked for again when that fails, given back at the end. A router whose own outside address is not public (another
NAT is in front of it) helps nobody and is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from hivemind_p2p.config import NATSettings
from hivemind_p2p.errors import TransportError
from hivemind_p2p.nat.mapping import Mapping, MappingProtocol, default_gateway
from hivemind_p2p.nat.nat_pmp import NATPMP
from hivemind_p2p.nat.upnp import UPnP

logger = logging.getLogger(__name__)
_RENEWALS: Final = 3
"""Times that a mapping is renewed before it would end; a router that was restarted has forgotten it by then."""
_SHORTEST: Final = 20.0
"""Seconds between renewals at least, however short a time a router promises."""
_AGAIN: Final = 60.0
_AGAIN_MAX: Final = 3600.0
_GOODBYE: Final = 2.0


class PortMapping:
    """The mapping of one port.

    Args:
        own: our IPv4 address behind the NAT and the port that we listen on there; None: there is none.
        changed: called when :attr:`held` is another one than before.
        ways: how routers are asked, in the order in which it is tried; default: NAT-PMP, then UPnP.
    """

    def __init__(
        self,
        settings: NATSettings,
        own: Callable[[], tuple[str, int] | None],
        changed: Callable[[], None],
        ways: Callable[[str], Sequence[MappingProtocol]] | None = None,
    ) -> None:
        self.held: Mapping | None = None
        """The mapping that others may use."""
        self.needed = trio.Event()
        """To be set once there is a NAT."""
        self.state = ""
        """What became of it, for people; empty: nobody was asked."""
        self._settings = settings
        self._own = own
        self._changed = changed
        self._make_ways = ways if ways is not None else lambda ip: (NATPMP(default_gateway(ip)), UPnP())
        self._ways: Sequence[MappingProtocol] = ()
        self._way: MappingProtocol | None = None
        self._elsewhere = trio.Event()

    async def run(self) -> None:
        """Keep a mapping, once it is needed; never returns."""
        await self.needed.wait()
        pause = _AGAIN
        while True:
            self._elsewhere = trio.Event()
            mapping = await self._map()
            if mapping is None:
                wait, pause = pause, min(2 * pause, _AGAIN_MAX)
            else:
                wait, pause = max(mapping.lifetime / _RENEWALS, _SHORTEST), _AGAIN
            with trio.move_on_after(wait):
                await self._elsewhere.wait()
                pause = _AGAIN

    def network_changed(self) -> None:
        """What the old router forwards is of no use any more; ask the new one at once, if any was asked before."""
        self._ways = ()
        self._take(None, None, "")
        self._elsewhere.set()

    async def withdraw(self) -> None:
        """Give the port back, as far as that is done within two seconds."""
        mapping, self.held = self.held, None
        if mapping is not None and self._way is not None:
            with trio.CancelScope(shield=True):
                await self._give_back(self._way, mapping)

    async def _map(self) -> Mapping | None:
        """Ask for the port, or for more time; None: there is no router that does it."""
        own = self._own()
        if own is None:
            self._take(None, None, "this node listens on no private IPv4 address")
            return None
        ip, port = own
        if not self._ways:
            self._ways = self._make_ways(ip)
        wanted = self.held.external_port if self.held is not None else port
        problems = []
        for way in sorted(self._ways, key=lambda each: each is not self._way):  # the one that did it before comes first
            try:
                mapping = await way.map(port, wanted, int(self._settings.port_mapping_lease))
            except TransportError as error:
                problems.append(str(error))
                continue
            if not mapping.is_public:
                problem = f"the router's own outside address is {mapping.external_ip}: another NAT is in front of it"
                problems.append(f"{mapping.way}: {problem}")
                await self._give_back(way, mapping)
                continue
            self._take(way, mapping, f"{mapping.way}: {mapping.maddr} leads to port {port}")
            return mapping
        self._take(None, None, "; ".join(problems))
        self._ways = ()  # the next time it may be another network
        return None

    async def _give_back(self, way: MappingProtocol, mapping: Mapping) -> None:
        with trio.move_on_after(_GOODBYE):
            try:
                await way.unmap(mapping)
            except TransportError as error:
                logger.debug("port %d of the router was not given back: %s", mapping.external_port, error)

    def _take(self, way: MappingProtocol | None, mapping: Mapping | None, state: str) -> None:
        logger.debug("port mapping: %s", state)
        before = self.held.maddr if self.held is not None else None
        self._way, self.held, self.state = way, mapping, state
        if (mapping.maddr if mapping is not None else None) != before:
            self._changed()

    def __repr__(self) -> str:
        return f"<PortMapping, {self.state or 'not needed yet'}>"
