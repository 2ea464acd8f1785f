"""Dials and streams that are given up at any point, on either side: nothing of them is left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.memory import MemoryWire
from tests.cancelling import cancelled_at_each_step
from tests.transport.hosts import ECHO, at_peace, roundtrip
from tests.transport.test_memory import listening_host, pair


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@asynccontextmanager
async def resting() -> AsyncIterator[tuple[Host, Host, int]]:
    """Two hosts that are not connected, and the tasks that run."""
    async with pair(latency=0.01) as (_, one, two):
        await trio.testing.wait_all_tasks_blocked()
        yield one, two, tasks()


async def test_a_dial_leaves_a_connection_on_both_sides_or_on_none(autojump_clock):
    async with resting() as (one, two, before):

        async def afterwards() -> None:
            await trio.sleep(3)
            assert len(one.connections()) == len(two.connections()) <= 1
            at_peace(one, two)
            for connection in [*one.connections(), *two.connections()]:
                await connection.aclose()
            await trio.sleep(15)
            assert tasks() == before

        assert await cancelled_at_each_step(lambda: one.connect(two.visible_maddrs[0]), afterwards) > 10


@pytest.mark.parametrize("known", [True, False])
async def test_a_stream_leaves_nothing_on_either_side(autojump_clock, known: bool):
    async with resting() as (one, two, _):
        await one.connect(two.visible_maddrs[0])
        await trio.sleep(1)
        [connection] = one.connections()
        before = tasks()

        async def use() -> None:
            if not known:
                connection._known.clear()
            stream = await one.open_stream(two.peer_id, ECHO)
            try:
                await stream.send_all(bytes(600_000))
                await stream.send_eof()
                assert len(await stream.read_exactly(600_000)) == 600_000
            finally:
                await stream.reset()

        async def afterwards() -> None:
            await trio.sleep(1)
            assert one.connections() == [connection]
            at_peace(one, two)
            assert tasks() == before

        assert await cancelled_at_each_step(use, afterwards) > 50


async def test_a_host_leaves_nothing(autojump_clock):
    wire = MemoryWire(latency=0.01)
    async with listening_host(wire, 1) as server:
        await trio.testing.wait_all_tasks_blocked()
        before = tasks()

        async def live() -> None:
            async with listening_host(wire, 2) as host:
                await host.connect(server.visible_maddrs[0])
                assert await roundtrip(host, server) == b"ping"

        async def afterwards() -> None:
            await trio.sleep(15)
            assert server.connections() == []
            assert len(wire.listeners) == 1
            assert tasks() == before

        assert await cancelled_at_each_step(live, afterwards) > 50
