"""A small soak; ``scripts/bench soak`` runs it for as long as one likes."""

from __future__ import annotations

import pytest
import trio

from benchmarks.soak import PROTOCOL, Soak, left, more_than, serve
from hivemind_p2p.transport.host import Host
from tests.transport.hosts import two_hosts
from tests.transport.test_memory import pair

USES = {"echo", "cancel", "cut_short", "listen", "unused"}


async def soak(one: Host, two: Host, *, workers: int, streams: int, seed: int) -> None:
    for host in (one, two):
        host.set_stream_handler(PROTOCOL, serve)
    await one.connect(two.visible_maddrs[0])
    for host in (one, two):
        await host.connections()[0].identified.wait()
    soak, before = Soak(one, two, seed), left(one, two)
    await soak.run(workers, streams=streams)
    more = await more_than(before, one, two)
    assert not more
    assert set(soak.outcomes) == USES
    assert soak.carried > 0


@pytest.mark.parametrize("seed", range(3))
async def test_random_streams_leave_nothing_in_memory(autojump_clock, seed):
    async with pair(latency=0.01) as (_, one, two):
        await soak(one, two, workers=100, streams=300, seed=seed)


async def test_random_streams_leave_nothing_over_sockets():
    async with two_hosts() as (server, client):
        await soak(client, server, workers=150, streams=900, seed=1)


async def test_what_is_left_is_seen():
    async with two_hosts() as (server, client):
        server.set_stream_handler(PROTOCOL, serve)
        stream = await client.open_stream(server.peer_id, PROTOCOL)
        await trio.testing.wait_all_tasks_blocked()
        counted = left(server, client)
        assert counted["stream objects"] == 4
        assert counted["streams"] >= 2
        await stream.aclose()
