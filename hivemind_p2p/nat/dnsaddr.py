"""Addresses in the TXT record of a peer, as libp2p's mDNS has them: ``dnsaddr=/ip4/.../tcp/.../p2p/...``. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from hivemind_p2p.transport.addresses import endpoint_of, split_peer, why_undialable, with_peer
from hivemind_p2p.wire.peer_id import PeerID

_PREFIX: Final = b"dnsaddr="
_MOST: Final = 8
"""Addresses written, and addresses read: a packet of mDNS should fit into one of Ethernet."""


def encode(maddrs: Iterable[Multiaddr], peer_id: PeerID) -> bytes:
    """The TXT record of a peer that is at these addresses."""
    texts = [_PREFIX + str(with_peer(maddr, peer_id)).encode() for maddr in maddrs]
    return b"".join(bytes([len(text)]) + text for text in texts[:_MOST] if len(text) < 256)


def decode(record: bytes, networks: Sequence[str]) -> dict[PeerID, list[Multiaddr]]:
    """The peers of a TXT record, each with its addresses, which end in ``/p2p``.

    Anybody on the network can send one. So only addresses of the network itself are taken: nobody can make us dial
    others.

    Args:
        networks: those that we are in, such as ``192.168.1.7/24``.
    """
    near = [ipaddress.ip_network(network, strict=False) for network in networks]
    found: dict[PeerID, list[Multiaddr]] = {}
    position = count = 0
    while position < len(record) and count < _MOST:
        text = record[position + 1 : position + 1 + record[position]]
        position += 1 + record[position]
        if not text.startswith(_PREFIX):
            continue
        count += 1
        try:
            maddr, peer_id = split_peer(Multiaddr(text[len(_PREFIX) :].decode()))
        except (MultiaddrError, ValueError, LookupError):
            continue
        endpoint = endpoint_of(maddr)
        ip = endpoint.ip if endpoint is not None else None
        if peer_id is None or ip is None or why_undialable(maddr) is not None or ip.is_loopback:
            continue
        if any(ip in network for network in near if network.version == ip.version):
            found.setdefault(peer_id, []).append(with_peer(maddr, peer_id))
    return found
