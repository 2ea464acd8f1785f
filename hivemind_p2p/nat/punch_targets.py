"""Which addresses to offer for a hole punch, and which of those offered to dial. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

from multiaddr import Multiaddr

from hivemind_p2p.transport.addresses import circuit_of, endpoint_of, is_public, maddr_of, why_undialable

MOST: Final = 8
"""Addresses offered, and addresses dialled: 4 KiB hold many more, a flood of SYNs in somebody's name must not."""


def offer(listening: Sequence[Multiaddr], observed: Sequence[Multiaddr]) -> list[Multiaddr]:
    """Our addresses for a peer that shall punch through to us, best first.

    Args:
        listening: where we listen, of this machine; or the port that our dials leave from.
        observed: where others see us, best first. A NAT that keeps ports maps the port that we listen on to itself,
            whatever port a connection left from; so the observed IPs are offered with that port too.
    """
    ports = list(dict.fromkeys(endpoint.port for maddr in listening if (endpoint := endpoint_of(maddr)) is not None))
    ips = dict.fromkeys(endpoint.host for maddr in observed if (endpoint := endpoint_of(maddr)) is not None)
    guessed = [maddr_of(ip, port) for ip in ips for port in ports]
    public = [maddr for maddr in listening if is_public(maddr)]
    private = [maddr for maddr in listening if not is_public(maddr)]
    everything = dict.fromkeys([*public, *observed, *guessed, *private])
    return [maddr for maddr in everything if _is_one_machine(maddr)][:MOST]


def choose(offered: Iterable[Multiaddr], *, ours: Iterable[Multiaddr]) -> list[Multiaddr]:
    """The addresses to dial of those that a peer offers, best first.

    Only public ones, since a peer could name any machine of our network; unless it is seen at the same public IP as we
    are: then it may be behind the same NAT, and its private ones are what leads to it if that NAT does not carry what
    comes from inside to its own outside (hairpin).

    Args:
        ours: all our addresses: observed and listened on. They are never dialled.
    """
    own = set(ours)
    own_ips = {endpoint.host for maddr in own if (endpoint := endpoint_of(maddr)) is not None and is_public(maddr)}
    usable = [maddr for maddr in dict.fromkeys(offered) if _is_one_machine(maddr) and maddr not in own]
    public = [maddr for maddr in usable if is_public(maddr)]
    neighbours = any(endpoint.host in own_ips for maddr in public if (endpoint := endpoint_of(maddr)) is not None)
    private = [maddr for maddr in usable if not is_public(maddr)] if neighbours else []
    return [*private, *public][:MOST]


def _is_one_machine(maddr: Multiaddr) -> bool:
    """An IP address that can be dialled, not through a relay, and not the machine itself."""
    if circuit_of(maddr) is not None or why_undialable(maddr) is not None:
        return False
    endpoint = endpoint_of(maddr)
    if endpoint is None or endpoint.ip is None:
        return False
    ip = endpoint.ip
    return not (ip.is_loopback or ip.is_reserved) or (isinstance(ip, ipaddress.IPv6Address) and ip.is_global)
