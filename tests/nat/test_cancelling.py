"""Circuits, visits and questions that are given up at any point: nobody on the way holds anything of them."""

from __future__ import annotations

import pytest
import trio

from hivemind_p2p.config import NATSettings
from hivemind_p2p.transport.connection import MuxedConnection
from tests.cancelling import cancelled_at_each_step
from tests.nat.memory import Peer, call, swarm
from tests.transport.hosts import ECHO, at_peace

SELDOM = NATSettings(hole_punching=False, autonat_interval=1e9)
"""So that nothing is under way but what is tested."""


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


def forgotten(*peers: Peer) -> None:
    """Nothing is under way that reaches peers."""
    for nat in (peer.nat for peer in peers):
        assert (nat.puncher._leading, nat.puncher._following, nat.puncher._room.borrowed_tokens) == ({}, {}, 0)
        assert (nat.autonat._requests._asked, nat.autonat._dial_backs._room.borrowed_tokens) == ({}, 0)
        assert len(nat._watched) == len([each for each in nat._host.connections() if each.relay is None])


async def test_a_circuit_leaves_nothing_at_the_relay_and_at_its_ends(autojump_clock):
    async with swarm() as net:
        relay = await net.start(nat=SELDOM)
        hidden, other = [await net.start([relay], hidden=True, nat=SELDOM) for _ in range(2)]
        await trio.sleep(60)
        before = tasks()

        async def reach() -> None:
            await other.host.connect(hidden.circuits[0])
            assert await call(other, hidden)

        async def afterwards() -> None:
            await trio.sleep(12)
            circuits = [*other.host.connections(hidden.peer_id), *hidden.host.connections(other.peer_id)]
            assert len(circuits) == 2 * relay.nat.service.book.circuits <= 2
            for circuit in circuits:
                await circuit.aclose()
            await trio.sleep(12)
            assert (relay.nat.service.book.circuits, relay.nat.service.book._circuits) == (0, {})
            at_peace(relay.host, hidden.host, other.host)
            forgotten(relay, hidden, other)
            assert tasks() == before

        assert await cancelled_at_each_step(reach, afterwards, every=4) > 50


@pytest.mark.parametrize("errand", ["visit", "knock", "AutoNAT 1", "AutoNAT 2", "reserve"])
async def test_an_errand_leaves_nothing(autojump_clock, errand: str):
    async with swarm() as net:
        first, peer = await net.start(nat=SELDOM), await net.start(nat=SELDOM)
        await peer.host.connect(first.maddrs[0])
        await trio.sleep(60)
        before = tasks()
        [connection] = peer.host.connections()
        [ours], [theirs] = peer.host.listen_maddrs, first.host.listen_maddrs

        async def talk(visit: MuxedConnection) -> None:
            async with await visit.open_stream(ECHO) as stream:
                await stream.send_all(b"!")
                assert await stream.read_exactly(1) == b"!"

        async def run() -> None:
            if errand == "visit":
                await peer.host.visits.visit(first.peer_id, theirs, talk)
            elif errand == "knock":
                await peer.host.visits.knock(first.peer_id, theirs)
            elif errand == "AutoNAT 1":
                assert await peer.nat.autonat._ask_about(connection, ours)
            elif errand == "AutoNAT 2":
                assert await peer.nat.autonat._requests.ask(connection, ours)
            else:
                await peer.nat.client.reserve(connection)

        async def afterwards() -> None:
            await trio.sleep(20)
            assert peer.host.connections() == [connection]
            at_peace(first.host, peer.host)
            forgotten(first, peer)
            assert tasks() == before

        assert await cancelled_at_each_step(run, afterwards) > 10
