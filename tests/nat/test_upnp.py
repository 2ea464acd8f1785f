"""Asking a router by UPnP, without one."""

from __future__ import annotations

import pytest

from hivemind_p2p.errors import TransportError
from hivemind_p2p.nat.upnp import UPnP


class Router:
    """Has given some ports away, and takes what it is asked for otherwise."""

    lanaddr = "192.168.1.2"

    def __init__(self, *taken: int) -> None:
        self._taken = taken

    def externalipaddress(self) -> str:
        return "44.0.0.1"

    def addportmapping(self, port: int, *_: object) -> bool:
        if port in self._taken:
            raise Exception("ConflictInMappingEntry")  # as the library has it
        return True


async def mapped(port: int, *taken: int) -> int:
    way = UPnP()
    way._router = Router(*taken)
    return (await way.map(port, port, 60)).external_port


async def test_a_port_that_is_taken_is_passed_over():
    assert await mapped(4001) == 4001
    assert await mapped(4001, 4001, 4002) == 4003


async def test_ports_end_where_they_end():
    assert await mapped(65534, 65534) == 65535
    with pytest.raises(TransportError, match="all ports from 65534 on that were tried are taken"):
        await mapped(65534, 65534, 65535)
