"""Peers on the same network, without anybody who knows them: mDNS (libp2p specs/discovery/mdns.md), by zeroconf.

A node says that it is there, under a name that means nothing, and asks who else is. It speaks in private networks only,
and only where it listens. Whom it finds it tells; what to do with them is decided elsewhere.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.background import Background
from hivemind_p2p.nat import dnsaddr
from hivemind_p2p.transport.addresses import endpoint_of, interface_ips, interface_networks
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf

    from hivemind_p2p.transport.host import Host

logger = logging.getLogger(__name__)
SERVICE: Final = "_p2p._udp.local."
_PORT: Final = 4001  # of the SRV record, which nobody reads: addresses say their ports themselves
_TXT: Final = 16  # a type of records
_INTERNET: Final = 1  # their class
_MOST_TEXTS: Final = 16
_ANSWER: Final = 1000
"""Milliseconds to wait for the record of a peer that only said its name."""
_LOOK_AROUND: Final = 30.0
"""Seconds between two looks at whether this machine is in other networks now."""
_AGAIN: Final = 60.0
"""Seconds for which a peer that was told is not told again."""
_MOST_PEERS: Final = 256
_AT_ONCE: Final = 4
_MOST_WAITING: Final = 32
_GOODBYE: Final = 2.0

Found = Callable[[Sequence[Multiaddr]], Awaitable[None]]


class LocalPeers(Background):
    """Finds and is found: ``async with LocalPeers(host, found)``, while the host runs.

    Args:
        found: called with the addresses of a peer, each ending in ``/p2p``, in a task of its own.
    """

    def __init__(self, host: Host, found: Found) -> None:
        self.met = trio.Event()
        """Set once :attr:`found` has been called for a peer, and returned."""
        self._host = host
        self._found = found
        self._told: OrderedDict[PeerID, float] = OrderedDict()
        self._room = trio.CapacityLimiter(_AT_ONCE)
        self._ips: Sequence[str] = ()
        self._elsewhere = trio.Event()

    async def _begin(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        """Speak in the networks that we are in, whichever that are at the time; never returns."""
        from zeroconf import Error as ZeroconfError  # 70 ms that only who wants it pays

        while True:
            self._elsewhere = trio.Event()
            self._told.clear()
            self._ips = speaking_ips(self._host.listen_maddrs)
            try:
                if self._ips:
                    await self._speak(self._ips)
                    continue
            except (OSError, ZeroconfError) as error:
                logger.debug("mDNS does not work at %s: %s", ", ".join(self._ips), error)
            await self._a_while()

    def network_changed(self) -> None:
        """This machine is in another network: look around at once, and tell of everybody who is heard there."""
        self._elsewhere.set()

    async def _a_while(self) -> None:
        with trio.move_on_after(_LOOK_AROUND):
            await self._elsewhere.wait()

    async def _speak(self, ips: Sequence[str]) -> None:
        """Until our networks are others."""
        token = trio.lowlevel.current_trio_token()
        own_name = f"{secrets.token_hex(16)}.{SERVICE}"
        conversation: list[Zeroconf] = []

        def heard(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
            # In a thread of zeroconf's. A peer answers with its name and a TXT record; many send nothing else.
            from zeroconf import Error as ZeroconfError
            from zeroconf import ServiceInfo, ServiceStateChange

            if name == own_name or state_change is ServiceStateChange.Removed:
                return
            if not (text := _texts(zeroconf, name)):
                try:
                    ServiceInfo(service_type, name).request(zeroconf, _ANSWER)
                except ZeroconfError as error:  # anything may stand there; the thread hears nobody any more if it fails
                    logger.debug("a name in our network is none: %s", error)
                text = _texts(zeroconf, name)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._heard, text)

        def begin() -> None:
            from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, Zeroconf

            zeroconf = Zeroconf(interfaces=list(ips), ip_version=IPVersion.V4Only)
            conversation.append(zeroconf)
            ServiceBrowser(zeroconf, SERVICE, handlers=[heard])
            record = dnsaddr.encode(self._own_maddrs(ips), self._host.peer_id)
            if record:
                server = f"{own_name.partition('.')[0]}.local."
                info = ServiceInfo(
                    SERVICE, own_name, _PORT, properties=record, server=server, parsed_addresses=list(ips)
                )
                zeroconf.register_service(info, cooperating_responders=True)

        try:
            await trio.to_thread.run_sync(begin)
            while not self._elsewhere.is_set() and list(ips) == speaking_ips(self._host.listen_maddrs):
                await self._a_while()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(_GOODBYE):
                for zeroconf in conversation:
                    # (mypy sees the older trio-stubs that libp2p brings.)
                    await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)  # type: ignore[call-arg]

    def _own_maddrs(self, ips: Sequence[str]) -> list[Multiaddr]:
        listening = [(maddr, endpoint_of(maddr)) for maddr in self._host.listen_maddrs]
        return [maddr for maddr, endpoint in listening if endpoint is not None and endpoint.host in ips]

    def _heard(self, record: bytes) -> None:
        """Somebody says where peers are."""
        if self._nursery is None or self._room.statistics().tasks_waiting >= _MOST_WAITING:
            return  # who is still there says so again
        now = trio.current_time()
        for peer_id, maddrs in dnsaddr.decode(record, interface_networks()).items():
            told = self._told.get(peer_id)
            if peer_id == self._host.peer_id or (told is not None and now - told < _AGAIN):
                continue
            self._told[peer_id] = now
            self._told.move_to_end(peer_id)
            while len(self._told) > _MOST_PEERS:
                self._told.popitem(last=False)
            self._nursery.start_soon(self._tell, peer_id, maddrs)

    async def _tell(self, peer_id: PeerID, maddrs: Sequence[Multiaddr]) -> None:
        async with self._room:
            logger.debug("%s is in our network, at %s", peer_id, ", ".join(map(str, maddrs)))
            await self._found(maddrs)
            self.met.set()

    def __repr__(self) -> str:
        return f"<LocalPeers at {', '.join(self._ips) or 'nothing'}, {len(self._told)} heard of>"


def _texts(zeroconf: Zeroconf, name: str) -> bytes:
    """The TXT records of a peer, one behind the other: js-libp2p sends one for each of its addresses."""
    records = zeroconf.cache.get_all_by_details(name, _TXT, _INTERNET)
    return b"".join(getattr(each, "text", b"") for each in records[:_MOST_TEXTS])


def speaking_ips(listening: Sequence[Multiaddr]) -> list[str]:
    """The addresses of this machine from which to speak: those of private networks that we listen in, or, listening on
    nothing, all of them."""
    hosts = {endpoint.host for maddr in listening if (endpoint := endpoint_of(maddr)) is not None}
    return [ip for ip in interface_ips() if _is_of_a_private_network(ip) and (ip in hosts or not hosts)]


def _is_of_a_private_network(text: str) -> bool:
    ip = ipaddress.ip_address(text)
    return ip.version == 4 and not ip.is_global and not ip.is_loopback
