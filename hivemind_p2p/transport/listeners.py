"""The listeners of a host, and where they can be dialled."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import trio
from libp2p.abc import IListener
from multiaddr import Multiaddr

from hivemind_p2p.transport.addresses import expand, interface_ips

_INTERFACES_LAST: Final = 5.0
"""Seconds for which the machine is believed to have the same addresses: every call of the DHT tells where we are, and
asking the system takes half a millisecond."""


class Listeners:
    """Listeners that are open."""

    def __init__(self) -> None:
        self._listeners: list[IListener] = []
        self._bound: tuple[Multiaddr, ...] = ()
        self._maddrs: tuple[Multiaddr, ...] = ()
        self._until = 0.0

    def add(self, listener: IListener) -> None:
        """One that has begun to listen."""
        self._listeners.append(listener)

    @property
    def maddrs(self) -> Sequence[Multiaddr]:
        """Where they can be dialled: 0.0.0.0 and :: replaced by the addresses of the machine's interfaces (loopback
        only where that is all there is)."""
        bound = tuple(maddr for listener in self._listeners for maddr in listener.get_addrs())
        if bound != self._bound or time.monotonic() > self._until:
            self._bound, self._until = bound, time.monotonic() + _INTERFACES_LAST
            self._maddrs = tuple(expand(bound, interface_ips())) if bound else ()
        return list(self._maddrs)

    def look_again(self) -> None:
        """The addresses of the machine may be others now."""
        self._until = 0.0

    async def aclose(self) -> None:
        """Close them all."""
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(listener.close)

    def __len__(self) -> int:
        return len(self._listeners)

    def __repr__(self) -> str:
        return f"<Listeners at {', '.join(map(str, self._bound)) or 'nothing'}>"
