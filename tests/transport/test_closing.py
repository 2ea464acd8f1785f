"""Dials that end while their host does, and those that end in a connection nobody can use."""

from __future__ import annotations

import logging

import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import DialError, HivemindError, NodeClosed, StreamReset
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.memory import MemoryListener, MemoryTransport, MemoryWire
from tests.transport.hosts import ECHO, echo, in_use, roundtrip


class SlowListener(MemoryListener):
    """Takes its time to close, as a connection does that has something to say still."""

    async def close(self) -> None:
        await super().close()
        await trio.sleep(1)


class SlowTransport(MemoryTransport):
    def create_listener(self, handler_function) -> SlowListener:
        return SlowListener(self._wire, self._ip, handler_function)


def host_at(wire: MemoryWire, number: int, settings: TransportSettings | None = None, *, slow: bool = False) -> Host:
    ip = f"10.0.0.{number}"
    transport = (SlowTransport if slow else MemoryTransport)(wire, ip)
    maddr = Multiaddr(f"/ip4/{ip}/tcp/4001")
    host = Host(Identity.generate(), host_maddrs=[maddr], transport=transport, settings=settings)
    host.set_stream_handler(ECHO, echo)
    return host


async def test_a_host_ends_in_peace_while_it_dials(autojump_clock):
    wire = MemoryWire(latency=0.05)
    async with host_at(wire, 1) as server, trio.open_nursery() as nursery:
        client = host_at(wire, 2, slow=True)

        async def connect() -> None:
            with pytest.raises(HivemindError):
                await client.connect(server.visible_maddrs[0])

        async with client:
            nursery.start_soon(connect)
            await trio.sleep(0.01)
        await trio.sleep(5)
        assert server.connections() == []


@pytest.mark.parametrize("as_client", [True, False])
async def test_a_host_ends_in_peace_while_it_punches(autojump_clock, as_client: bool):
    wire = MemoryWire(latency=0.05)
    async with host_at(wire, 1) as server:
        async with host_at(wire, 2, slow=True) as client:
            with client.punching(server.peer_id, is_client=as_client) as punch:
                punch.dial(server.listen_maddrs)
        await trio.sleep(5)
        assert server.connections() == []


async def test_a_connection_that_there_is_no_room_for_is_closed(autojump_clock):
    wire = MemoryWire(latency=0.05)
    narrow = TransportSettings(max_connections=1)
    async with host_at(wire, 1) as one, host_at(wire, 2) as two, host_at(wire, 3, narrow) as client:
        await client.connect(one.visible_maddrs[0])
        await in_use(client, one)
        with pytest.raises(DialError, match="all 1 connections are in use"):
            await client.connect(two.visible_maddrs[0])
        await trio.sleep(1)
        assert two.connections() == []
        assert await roundtrip(client, one) == b"ping"


async def test_a_dial_that_goes_on_gives_nobody_a_connection_that_has_ended(autojump_clock):
    wire = MemoryWire(latency=0.05)
    async with host_at(wire, 1) as one, host_at(wire, 2) as two, trio.open_nursery() as nursery:
        wire.silent.add("10.0.0.2")
        nursery.start_soon(one.connect, two.visible_maddrs[0])  # which goes nowhere
        await trio.sleep(0.1)
        await two.connect(one.visible_maddrs[0])
        await trio.sleep(1)
        await two.connections()[0].aclose()
        await trio.sleep(1)
        assert one.connections() == []
        wire.silent.clear()
        await one.connect(two.visible_maddrs[0])
        assert await roundtrip(one, two) == b"ping"


async def test_a_handler_that_finds_its_node_closed_is_no_bug(autojump_clock, caplog):
    wire = MemoryWire(latency=0.05)
    async with host_at(wire, 1) as server, host_at(wire, 2) as client:

        async def handler(stream: Stream) -> None:
            raise NodeClosed("the node was shut down meanwhile")

        server.set_stream_handler(ECHO, handler)
        await client.connect(server.visible_maddrs[0])
        with pytest.raises(StreamReset):
            await roundtrip(client, server)
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
