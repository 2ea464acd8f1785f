"""UPnP Internet Gateway Devices, by miniupnpc: found by multicast, asked by SOAP over HTTP.

The library waits where it stands, so every call is made in a thread. What it raises is ``Exception`` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import trio

from hivemind_p2p.errors import TransportError
from hivemind_p2p.nat.mapping import Mapping

T = TypeVar("T")
_SEARCH: Final = 2.0
"""Seconds in which routers may answer the search; the specification lets them take that long."""
_NEXT_PORTS: Final = 4
"""Ports tried when the one that we would like is taken."""
_TEXT: Final = "hivemind_p2p"
_PERMANENT_ONLY: Final = "OnlyPermanentLeasesSupported"
_CONFLICT: Final = "ConflictInMappingEntry"


class UPnP:
    """The router of this network, if it speaks UPnP."""

    name: Final = "UPnP"

    def __init__(self) -> None:
        self._router: Any = None

    async def map(self, internal_port: int, external_port: int, lifetime: int) -> Mapping:
        """Have a TCP port forwarded, or the promise renewed.

        Raises:
            TransportError: there is no such router, or it refuses.
        """
        router = await self._in_thread(self._find)

        def add() -> int:
            for port in range(external_port, min(external_port + _NEXT_PORTS, 2**16)):  # it takes 65536 for 0
                try:
                    router.addportmapping(port, "TCP", router.lanaddr, internal_port, _TEXT, "", lifetime)
                except Exception as error:
                    if _PERMANENT_ONLY in str(error):
                        router.addportmapping(port, "TCP", router.lanaddr, internal_port, _TEXT, "", 0)
                    elif _CONFLICT in str(error):
                        continue
                    else:
                        raise
                return port
            raise TransportError(f"all ports from {external_port} on that were tried are taken by others")

        try:
            ip = str(await self._in_thread(router.externalipaddress))
            return Mapping(self.name, ip, await self._in_thread(add), internal_port, lifetime)
        except TransportError:
            self._router = None  # it may be another one by now: search again the next time
            raise

    async def unmap(self, mapping: Mapping) -> None:
        """Give a port back.

        Raises:
            TransportError: the router refuses, or is gone.
        """
        router = self._router
        if router is not None:
            await self._in_thread(lambda: router.deleteportmapping(mapping.external_port, "TCP"))

    def _find(self) -> Any:
        if self._router is None:
            import miniupnpc

            router = miniupnpc.UPnP()
            router.discoverdelay = int(1000 * _SEARCH)
            try:
                router.discover()
            except Exception as error:
                if str(error) != "Success":  # as it says when nobody answered
                    raise
            router.selectigd()
            self._router = router
        return self._router

    async def _in_thread(self, call: Callable[[], T]) -> T:
        def guarded() -> T:
            try:
                return call()
            except TransportError:
                raise
            except Exception as error:  # all that the library ever raises
                raise TransportError(f"no port by UPnP: {error}") from None

        # What has been started by then ends by itself. (mypy sees the older trio-stubs that libp2p brings.)
        return await trio.to_thread.run_sync(guarded, abandon_on_cancel=True)  # type: ignore[call-arg]

    def __repr__(self) -> str:
        return f"<UPnP, {'router found' if self._router is not None else 'no router yet'}>"
