"""The first routers on the way out, without privileges: which of them are in private networks says how many NATs there
are. Linux only, which hands the ICMP messages about a datagram to the socket that sent it (``IP_RECVERR``).
"""

from __future__ import annotations

import ipaddress
import itertools
import socket
import struct
import sys
from typing import Final

import trio

_MOST_HOPS: Final = 4
_PORT: Final = 33434  # where traceroute begins; nobody listens there
_IP_RECVERR: Final = 11  # linux/in.h; not in Python's socket module
_MSG_ERRQUEUE: Final = 0x2000
_ERROR: Final = struct.Struct("=IBBBBIi")  # struct sock_extended_err; the router's sockaddr_in follows
_ORIGIN_ICMP: Final = 2
_AGAIN: Final = 0.3
"""Seconds until a router that did not answer is asked again: they answer so many times a second."""


async def private_hops(target: str, timeout: float = 3.0) -> list[str]:
    """The routers before the first public one on the way to an IPv4 address, the nearest first.

    Args:
        timeout: seconds to wait for their answers.

    Returns:
        Their addresses; what did not answer is left out. Nothing where the system cannot tell.
    """
    if sys.platform != "linux":
        return []
    hops: dict[int, str] = {}
    with trio.move_on_after(timeout):
        async with trio.open_nursery() as nursery:

            async def ask(ttl: int) -> None:
                await _ask(target, ttl, hops)
                first_public = next((each for each in sorted(hops) if _is_global(hops[each])), _MOST_HOPS + 1)
                if all(each in hops for each in range(1, first_public)):
                    nursery.cancel_scope.cancel()

            for ttl in range(1, _MOST_HOPS + 1):
                nursery.start_soon(ask, ttl)
    return list(itertools.takewhile(lambda ip: not _is_global(ip), (hops[ttl] for ttl in sorted(hops))))


async def _ask(target: str, ttl: int, hops: dict[int, str]) -> None:
    """Send a datagram that the ``ttl``-th router throws away, and note who says so."""
    try:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            await sock.connect((target, _PORT + ttl))
            waiting = True
            while waiting:
                await sock.send(b"which way?")
                with trio.move_on_after(_AGAIN):
                    await trio.lowlevel.wait_readable(sock.fileno())
                    waiting = False
            _, about, _, _ = await sock.recvmsg(0, 512, _MSG_ERRQUEUE)
    except OSError:
        return  # no way out at all, or not with datagrams
    for level, kind, data in about:
        if level == socket.IPPROTO_IP and kind == _IP_RECVERR and len(data) >= _ERROR.size + 8:
            origin = _ERROR.unpack_from(data)[1]
            if origin == _ORIGIN_ICMP:
                hops[ttl] = socket.inet_ntoa(data[_ERROR.size + 4 : _ERROR.size + 8])


def _is_global(ip: str) -> bool:
    return ipaddress.ip_address(ip).is_global
