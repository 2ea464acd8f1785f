"""A port that a router forwards to us, and how one asks for it."""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from multiaddr import Multiaddr

from hivemind_p2p.transport.addresses import maddr_of

_ROUTES = Path("/proc/net/route")
_UP_GATEWAY = 0x3


@dataclass(frozen=True)
class Mapping:
    """A TCP port of a router that leads to one of ours."""

    way: str
    """The protocol by which the router was asked."""
    external_ip: str
    external_port: int
    internal_port: int
    lifetime: int
    """Seconds that it holds, if it is not renewed."""

    @property
    def is_public(self) -> bool:
        """Whether the internet can use it: the router's own outside address may be behind another NAT."""
        try:
            return ipaddress.ip_address(self.external_ip).is_global
        except ValueError:
            return False

    @property
    def maddr(self) -> Multiaddr:
        """Where others dial it."""
        return maddr_of(self.external_ip, self.external_port)


class MappingProtocol(Protocol):
    """A way to ask a router."""

    async def map(self, internal_port: int, external_port: int, lifetime: int) -> Mapping:
        """Have a TCP port forwarded, or the promise renewed. Raises TransportError."""

    async def unmap(self, mapping: Mapping) -> None:
        """Give it back. Raises TransportError."""


def default_gateway(own_ip: str) -> str:
    """The router of this network.

    Args:
        own_ip: our address in it. Where the system does not say, the network's first address is taken, as most do.
    """
    return default_route()[0] or re.sub(r"\.\d+$", ".1", own_ip)


def default_route() -> tuple[str, str]:
    """The IPv4 router that the system says it has, and the interface that leads there; empty where it does not say."""
    if sys.platform == "linux":
        for line in lines_of(_ROUTES):
            fields = line.split()
            if len(fields) > 3 and fields[1] == "00000000" and int(fields[3], 16) & _UP_GATEWAY == _UP_GATEWAY:
                return socket.inet_ntoa(struct.pack("<I", int(fields[2], 16))), fields[0]
    return "", ""


def lines_of(table: Path) -> list[str]:
    """The lines of a table of the kernel, without its head; none where there is no such table."""
    try:
        return table.read_text().splitlines()[1:]
    except OSError:
        return []
