"""One local port per address family: a host's listener and all its dials share it.

A NAT gives each port inside one port outside. Only when dials leave from the port that we listen on is the address that
a peer sees of us one where we can be reached, or punched through to. Where the platform lacks ``SO_REUSEPORT`` dials
take whatever port is free, and reaching a host behind a NAT directly becomes luck.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import Final

import trio

logger = logging.getLogger(__name__)
CAN_SHARE: Final = hasattr(socket, "SO_REUSEPORT")
_ANY: Final = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


class SharedPort:
    """The ports of one host. A host that listens on nothing takes one of its own at its first dial."""

    def __init__(self) -> None:
        self._listening: dict[int, list[tuple[str, int]]] = {}
        self._held: dict[int, trio.socket.SocketType] = {}
        if not CAN_SHARE:
            logger.warning("this platform lacks SO_REUSEPORT: reaching this node behind a NAT needs a relay")

    def listen(self, sock: trio.socket.SocketType) -> None:
        """Let dials share the port of ``sock``, which is bound and about to listen.

        The option is set only now: bound without it, the socket found out whether another program has the port.
        """
        if CAN_SHARE:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            host, port = sock.getsockname()[:2]
            self._listening.setdefault(sock.family, []).append((host, port))

    def source(self, family: int, target: str) -> tuple[str, int] | None:
        """The address to dial ``target`` from; None: any.

        The machine itself is dialled from any port: two hosts there that dial each other at once from the ports that
        they listen on would meet in the middle.
        """
        if not CAN_SHARE or _is_loopback(target):
            return None
        usable = [address for address in self._listening.get(family, ()) if not _is_loopback(address[0])]
        if usable:
            return min(usable, key=lambda address: address[0] != _ANY[socket.AddressFamily(family)])
        held = self._held.get(family)
        return held.getsockname()[:2] if held is not None else None

    async def dialling(self, family: int, target: str) -> trio.socket.SocketType:
        """A socket that leaves from the shared port.

        Raises:
            OSError: the port cannot be shared just now.
        """
        if CAN_SHARE and not _is_loopback(target) and not self._listening and family not in self._held:
            self._held[family] = await self._hold(family)
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            source = self.source(family, target)
            if source is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                await sock.bind(source)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _hold(self, family: int) -> trio.socket.SocketType:
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await sock.bind((_ANY[socket.AddressFamily(family)], 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Give up the ports that are only held."""
        for sock in self._held.values():
            sock.close()
        self._held.clear()

    def __repr__(self) -> str:
        ports = {port for addresses in self._listening.values() for _, port in addresses}
        ports |= {sock.getsockname()[1] for sock in self._held.values()}
        return f"<SharedPort {', '.join(map(str, sorted(ports))) or 'none yet'}>"


def bare_socket(family: int) -> trio.socket.SocketType:
    """A socket that leaves from any free port."""
    return trio.socket.socket(family, socket.SOCK_STREAM)


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
