"""Multiaddrs, as far as this transport understands them.

Two shapes, each with or without ``/p2p/ID`` at its end: ``/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT``, where a peer can be
dialled, and ``[that]/p2p/RELAY/p2p-circuit``, where a relay connects us to it. What is the one is never the other.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
_P2P: Final = 421  # multicodec of /p2p
_CACHED: Final = 2**14  # every answer of a DHT peer names many addresses, mostly the same ones, and reading one is slow
_LONGEST: Final = 512
"""Bytes of an address of a peer: a name has at most 253, and what is kept for reuse must be small."""
_CIRCUIT: Final = 290  # multicodec of /p2p-circuit
_FAMILIES: Final = {
    "ip4": socket.AF_INET,
    "ip6": socket.AF_INET6,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
    "dns": socket.AF_UNSPEC,
}


def read_maddr(raw: bytes) -> Multiaddr:
    """An address as peers send it, read to its end.

    Raises:
        ValueError: the bytes are none.
    """
    if len(raw) > _LONGEST:
        raise ValueError(f"{len(raw)} bytes are more than an address has")
    try:
        maddr = Multiaddr(raw)
        list(maddr.items()), str(maddr)  # reading is lazy, and each reads what the other does not
    # TypeError: it ends within a number; OverflowError: a length in it is larger than any; OSError: what reads it is
    # loaded when it is needed first, and no file can be opened
    except (MultiaddrError, ValueError, LookupError, TypeError, OverflowError, OSError) as error:
        raise ValueError(f"{raw[:40].hex()!r} is not an address: {error}") from None
    return maddr


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


@dataclass(frozen=True)
class Circuit:
    """Where a circuit address points: through which relay."""

    relay: PeerID
    relay_maddr: Multiaddr | None
    """Where the relay listens, without ``/p2p``; None when the address does not say."""


@lru_cache(_CACHED)
def circuit_of(maddr: Multiaddr) -> Circuit | None:
    """The circuit of an address without the last ``/p2p``; None for addresses of another shape (circuits in circuits,
    relays that are not dialled over TCP)."""
    try:
        names = [protocol.name for protocol in maddr.protocols()]
        if names[-2:] != ["p2p", "p2p-circuit"] or names.count("p2p-circuit") > 1:
            return None
        before, relay = split_peer(maddr.decapsulate_code(_CIRCUIT))
    except (MultiaddrError, ValueError, LookupError):
        return None
    assert relay is not None
    if len(names) > 2 and endpoint_of(before) is None:
        return None
    return Circuit(relay, before if len(names) > 2 else None)


def circuit_maddr(relay: PeerID, relay_maddr: Multiaddr | None) -> Multiaddr:
    """The address, without the last ``/p2p``, of whoever has a reservation at this relay.

    Args:
        relay_maddr: where the relay listens, without ``/p2p``; None: whoever dials must find out.
    """
    tail = Multiaddr(f"/p2p/{relay.base58}/p2p-circuit")
    return tail if relay_maddr is None else relay_maddr.encapsulate(tail)


@lru_cache(_CACHED)
def is_public(maddr: Multiaddr) -> bool:
    """Whether the address is of the whole internet: a global IP address, or a name."""
    endpoint = endpoint_of(maddr)
    if endpoint is None:
        return False
    return (
        endpoint.host != "localhost" if endpoint.ip is None else endpoint.ip.is_global and not endpoint.ip.is_multicast
    )


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


@lru_cache(_CACHED)  # every message of the DHT says where its sender is
def maddr_of(host: str, port: int) -> Multiaddr:
    """The TCP address of an IP address and a port; IPv4 inside IPv6 (``::ffff:...``) becomes IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return Multiaddr(f"/ip{address.version}/{address}/tcp/{port}")


@lru_cache(_CACHED)
def why_undialable(maddr: Multiaddr) -> str | None:
    """Why an address makes no sense to dial, in words; None when it does."""
    circuit = circuit_of(maddr)
    if circuit is not None:
        return why_undialable(circuit.relay_maddr) if circuit.relay_maddr is not None else None
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
    """Whether the address is of the machine itself only; a circuit's is its relay's."""
    circuit = circuit_of(maddr)
    endpoint = endpoint_of(maddr if circuit is None or circuit.relay_maddr is None else circuit.relay_maddr)
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


def addresses_of(peer_id: PeerID, maddrs: Iterable[Multiaddr]) -> list[Multiaddr]:
    """The addresses that are of this peer, or do not say whose they are; without the last ``/p2p``."""
    found: list[Multiaddr] = []
    for maddr in maddrs:
        try:
            bare, owner = split_peer(maddr)
        except ValueError:  # no peer id that we know: whoever dials it finds out
            bare, owner = maddr, None
        if owner in (None, peer_id):
            found.append(bare)
    return found


def public_first(maddrs: Iterable[Multiaddr]) -> tuple[list[Multiaddr], list[Multiaddr]]:
    """The addresses of the whole internet, and the others."""
    kept = list(maddrs)
    return [maddr for maddr in kept if is_public(maddr)], [maddr for maddr in kept if not is_public(maddr)]


def for_dialing(maddrs: Iterable[Multiaddr], near: Iterable[str] = ()) -> list[Multiaddr]:
    """Addresses of one peer in the order in which they are worth trying, otherwise as they came.

    Direct ones before circuits; but private ones that are not of a network of ours (``near``, such as
    ``192.168.1.0/24``) come last: they are mostly of somebody else's.
    """
    networks = [ipaddress.ip_network(text, strict=False) for text in near]

    def rank(maddr: Multiaddr) -> int:
        if circuit_of(maddr) is not None:
            return 1
        endpoint = endpoint_of(maddr)
        ip = endpoint.ip if endpoint is not None else None
        is_far = ip is not None and not ip.is_global and not ip.is_loopback and all(ip not in net for net in networks)
        return 2 if is_far else 0

    return sorted(maddrs, key=rank)


def interface_networks() -> list[str]:
    """The IP networks that this machine has an interface in, such as ``192.168.1.7/24``."""
    return [f"{ip}/{_prefix_length(netmask)}" for ip, netmask in _interfaces() if netmask]


def _prefix_length(netmask: str) -> int:
    return int(ipaddress.ip_address(netmask)).bit_count()


def interface_ips() -> list[str]:
    """The IP addresses of this machine's interfaces, without link-local ones; loopback last."""
    found: list[str] = []
    for text, _ in _interfaces():
        ip = ipaddress.ip_address(text)
        if not ip.is_link_local and str(ip) not in found:
            found.append(str(ip))
    return sorted(found, key=lambda text: ipaddress.ip_address(text).is_loopback)


_last_seen: Final[list[tuple[str, str]]] = []


def _interfaces() -> list[tuple[str, str]]:
    """The IP addresses of the interfaces, without their zones, and netmasks; those of the last time when the system
    does not say, as when it has no file descriptor left for the question."""
    try:
        import psutil  # 10 ms that only a listening host needs

        _last_seen[:] = [
            (entry.address.partition("%")[0], entry.netmask or "")
            for entries in psutil.net_if_addrs().values()
            for entry in entries
            if entry.family in (socket.AF_INET, socket.AF_INET6)
        ]
    except OSError as error:
        logger.debug("the addresses of this machine are not known: %s", error)
    return list(_last_seen)


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
