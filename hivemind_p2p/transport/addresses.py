"""Multiaddrs, as far as this transport understands them: ``/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT[/p2p/ID]``."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from hivemind_p2p.wire.peer_id import PeerID

_P2P: Final = 421  # multicodec of /p2p
_CACHED: Final = 4096  # every answer of a DHT peer names many addresses, mostly the same ones, and reading one is slow
_FAMILIES: Final = {
    "ip4": socket.AF_INET,
    "ip6": socket.AF_INET6,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
    "dns": socket.AF_UNSPEC,
}


@dataclass(frozen=True)
class Endpoint:
    """Where a TCP address points: a host (an IP address or a name), a port, and the address family it allows."""

    host: str
    port: int
    family: int

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The IP address; None for a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None


@lru_cache(_CACHED)
def endpoint_of(maddr: Multiaddr) -> Endpoint | None:
    """The TCP endpoint of an address without ``/p2p``; None for addresses of another shape (ws, QUIC, circuits)."""
    try:
        parts = [(protocol.name, value) for protocol, value in maddr.items()]
    except (MultiaddrError, ValueError, LookupError):
        return None
    if len(parts) != 2 or parts[0][0] not in _FAMILIES or parts[1][0] != "tcp":
        return None
    return Endpoint(str(parts[0][1]), int(parts[1][1]), _FAMILIES[parts[0][0]])


@lru_cache(_CACHED)
def split_peer(maddr: Multiaddr) -> tuple[Multiaddr, PeerID | None]:
    """Take the last ``/p2p/<id>`` off an address.

    Raises:
        ValueError: what stands there is not a peer id that we know.
    """
    protocols = list(maddr.protocols())
    if not protocols or protocols[-1].code != _P2P:
        return maddr, None
    peer_id = PeerID.from_base58(str(list(maddr.items())[-1][1]))
    return maddr.decapsulate_code(_P2P), peer_id


@lru_cache(_CACHED)
def with_peer(maddr: Multiaddr, peer_id: PeerID) -> Multiaddr:
    """The address with ``/p2p/<id>`` at its end, instead of another one where there is one."""
    protocols = list(maddr.protocols())
    bare = maddr.decapsulate_code(_P2P) if protocols and protocols[-1].code == _P2P else maddr
    return bare.encapsulate(Multiaddr(f"/p2p/{peer_id.base58}"))


def maddr_of(host: str, port: int) -> Multiaddr:
    """The TCP address of an IP address and a port; IPv4 inside IPv6 (``::ffff:...``) becomes IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return Multiaddr(f"/ip{address.version}/{address}/tcp/{port}")


@lru_cache(_CACHED)
def why_undialable(maddr: Multiaddr) -> str | None:
    """Why an address makes no sense to dial, in words; None when it does."""
    endpoint = endpoint_of(maddr)
    if endpoint is None:
        return "not a TCP address that can be dialled (/ip4, /ip6, /dns, /dns4 or /dns6, then /tcp)"
    if endpoint.port == 0:
        return "port 0 is not a port that anybody listens on"
    ip = endpoint.ip
    if ip is None:
        return None
    if ip.is_unspecified:
        return "an address to listen on, not one to dial"
    if ip.is_multicast or ip == ipaddress.IPv4Address("255.255.255.255"):
        return "not the address of one machine"
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_link_local:
        return "a link-local address means nothing without its interface"
    return None


def is_loopback(maddr: Multiaddr) -> bool:
    """Whether the address is of the machine itself only."""
    endpoint = endpoint_of(maddr)
    return endpoint is not None and (endpoint.ip.is_loopback if endpoint.ip else endpoint.host == "localhost")


def believable(maddrs: Iterable[Multiaddr], *, told_by: Multiaddr | None, limit: int) -> list[Multiaddr]:
    """The addresses that are worth remembering of those that a peer tells about itself.

    Args:
        told_by: where the peer talks from; only who is on this machine may name loopback addresses.
        limit: the most to keep.
    """
    local = told_by is not None and is_loopback(told_by)
    kept: list[Multiaddr] = []
    for maddr in maddrs:
        if len(kept) >= limit:
            break
        if why_undialable(maddr) is None and maddr not in kept and (local or not is_loopback(maddr)):
            kept.append(maddr)
    return kept


def interface_ips() -> list[str]:
    """The IP addresses of this machine's interfaces, without link-local ones; loopback last."""
    import psutil  # 10 ms that only a listening host needs

    found: list[str] = []
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                ip = ipaddress.ip_address(entry.address.partition("%")[0])
                if not ip.is_link_local and str(ip) not in found:
                    found.append(str(ip))
    return sorted(found, key=lambda text: ipaddress.ip_address(text).is_loopback)


def expand(listening: Sequence[Multiaddr], interfaces: Sequence[str]) -> list[Multiaddr]:
    """Addresses that others can dial, from those that are listened on.

    ``0.0.0.0`` and ``::`` stand for every interface of their family; loopback among those counts only when there is
    nothing else.

    Args:
        listening: bound addresses, with their real ports.
        interfaces: IP addresses of the machine.
    """
    dialable: list[Multiaddr] = []
    for maddr in listening:
        endpoint = endpoint_of(maddr)
        if endpoint is None or endpoint.ip is None or not endpoint.ip.is_unspecified:
            dialable.append(maddr)
            continue
        family = [text for text in interfaces if ipaddress.ip_address(text).version == endpoint.ip.version]
        outward = [text for text in family if not ipaddress.ip_address(text).is_loopback]
        dialable += [maddr_of(text, endpoint.port) for text in outward or family]
    return list(dict.fromkeys(dialable))
