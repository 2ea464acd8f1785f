"""In which network this machine is, by its addresses, its way out, its router; and whether it was in another before."""

from __future__ import annotations

import enum
import errno
import ipaddress
import socket
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hivemind_p2p.nat.mapping import default_route, lines_of
from hivemind_p2p.transport.addresses import interface_ips

_ARP: Final = Path("/proc/net/arp")
_LINKS: Final = Path("/sys/class/net")
_NOWHERE: Final = {"", "00:00:00:00:00:00"}
_OUTSIDE: Final = {socket.AF_INET: "8.8.8.8", socket.AF_INET6: "2001:4860:4860::8888"}
"""Addresses that only a way out of the network leads to. Nothing is ever sent there."""
_PATIENCE: Final = 10.0
"""Seconds after which a machine that lost its way out is believed to be in a network that has none."""


@dataclass(frozen=True)
class Surroundings:
    """Where a machine is."""

    ips: frozenset[str] = frozenset()
    """Its addresses, without loopback."""
    ways_out: tuple[str, ...] = ()
    """Those of them that the internet would be spoken to from, one of each family."""
    router: str = ""
    """The IPv4 address of the default gateway."""
    router_mac: str = ""
    """Its hardware address, as far as it is known: all home networks look the same otherwise."""
    link: str = ""
    """Which interface leads there, and, where the system counts that, how often it was connected to something."""


def look_around() -> Surroundings:
    """Where this machine is now. Takes less than a millisecond, and sends nothing.

    Raises:
        OSError: there is no file descriptor left to find out with.
    """
    ips = frozenset(ip for ip in interface_ips() if not ipaddress.ip_address(ip).is_loopback)
    router, interface = default_route()
    ways_out = tuple(source for family in _OUTSIDE if (source := _source(family)))
    return Surroundings(ips, ways_out, router, _mac_of(router), _link(interface))


class Change(enum.Enum):
    """What is different."""

    NOTHING = "nothing"
    ADDRESSES = "addresses"
    """The machine has other addresses besides the one that it speaks to the internet from."""
    NETWORK = "network"
    """It speaks to the internet from somewhere else, or may do so: it was in no network meanwhile."""


class ChangeDetector:
    """Tells when a machine has come to another network, or back to its own. Pure: time is passed in."""

    def __init__(self, now: Surroundings) -> None:
        self._here = now
        self._lost_at: float | None = None

    def saw(self, seen: Surroundings, now: float) -> Change:
        """What is different from before.

        While there is no way out, where there was one before, nothing is said for a while: most machines are on their
        way to the next network then.
        """
        if not seen.ips or (self._here.ways_out and not seen.ways_out):
            if self._lost_at is None:
                self._lost_at = now
            if not seen.ips or now - self._lost_at < _PATIENCE:
                return Change.NOTHING
        was_lost, self._lost_at = self._lost_at is not None, None
        before, self._here = self._here, replace(seen, router_mac=seen.router_mac or self._here.router_mac)
        same_mac = before.router_mac in ("", self._here.router_mac)
        same = (before.ways_out, before.router, before.link) == (seen.ways_out, seen.router, seen.link)
        if was_lost or not (same and same_mac):
            return Change.NETWORK
        return Change.NOTHING if before.ips == seen.ips else Change.ADDRESSES

    def __repr__(self) -> str:
        return f"<ChangeDetector: {', '.join(self._here.ways_out) or 'no way out'}>"


def _source(family: socket.AddressFamily) -> str:
    """The address from which the internet would be spoken to; empty: there is no way."""
    try:
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as sock:
            sock.connect((_OUTSIDE[family], 9))
            return str(sock.getsockname()[0])
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return ""


def _link(interface: str) -> str:
    if not interface:
        return ""
    try:
        number = socket.if_nametoindex(interface)
    except OSError:  # it went just now
        return ""
    try:
        return f"{number} {(_LINKS / interface / 'carrier_changes').read_text().strip()}"
    except OSError:
        return str(number)


def _mac_of(router: str) -> str:
    if not router or sys.platform != "linux":
        return ""
    for line in lines_of(_ARP):
        fields = line.split()
        if len(fields) > 3 and fields[0] == router and fields[3] not in _NOWHERE:
            return fields[3]
    return ""
