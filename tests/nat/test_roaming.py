"""A host whose network changes: what it forgets, which connections it ends, whom it meets again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from hivemind_p2p.errors import StreamError
from hivemind_p2p.nat.roaming import Roaming
from hivemind_p2p.nat.surroundings import Surroundings
from tests.nat.memory import Peer, call, swarm
from tests.transport.hosts import ECHO, until

HOME = Surroundings(frozenset({"10.0.0.3"}), ("10.0.0.3",), "10.0.0.1")
CAFE = replace(HOME, router="10.0.0.254")


class Journey:
    """A ``Roaming`` of a peer, and what it says."""

    def __init__(self, peer: Peer) -> None:
        self.here = HOME
        self.events: list[str] = []
        self.announced = trio.Event()
        self.roaming = Roaming(peer.host, lambda: self.say("forget"), lambda: self.say("gone"), lambda: self.here)
        self.roaming.announce = self.announce

    def say(self, event: str) -> None:
        self.events.append(event)

    async def announce(self) -> None:
        self.say("announce")
        self.announced.set()


async def test_peers_that_were_lost_with_the_network_are_met_again(autojump_clock, nursery):
    async with swarm() as net:
        relay = await net.start()
        moving, other = await net.start([relay]), await net.start([relay])
        await moving.host.connect(other.maddrs[0])
        await call(moving, other)
        [old] = moving.host.connections(other.peer_id)
        old.local_ip = "203.0.113.77"  # which this machine has not
        journey = Journey(moving)
        nursery.start_soon(journey.roaming.run)
        stream = await other.host.open_stream(moving.peer_id, ECHO)
        await stream.send_all(b"?")
        await trio.sleep(10)
        assert journey.events == []
        journey.here = CAFE
        with trio.fail_after(10):
            with pytest.raises(StreamError):
                await stream.read_exactly(2)
            await journey.announced.wait()
            await old.ended.wait()
            await until(lambda: bool(moving.host.connections(other.peer_id)))
        await stream.aclose()
        assert journey.events == ["forget", "gone", "announce"]
        assert journey.roaming.changes == 1
        assert repr(journey.roaming) == "<Roaming, the network changed 1 times>"
        await call(moving, other)


async def test_connections_that_live_are_kept(autojump_clock, nursery):
    async with swarm() as net:
        relay = await net.start()
        moving = await net.start([relay])
        await call(moving, relay)
        before = moving.host.connections(relay.peer_id)
        journey = Journey(moving)
        nursery.start_soon(journey.roaming.run)
        await trio.sleep(5)
        journey.here = CAFE
        await journey.announced.wait()
        assert moving.host.connections(relay.peer_id) == before
        journey.announced = trio.Event()
        journey.roaming.suspect()
        with trio.fail_after(1):
            await journey.announced.wait()
        assert moving.host.connections(relay.peer_id) == before
        assert journey.events == ["forget", "gone", "announce"] * 2


async def test_other_addresses_in_the_same_network_change_little(autojump_clock, nursery):
    async with swarm() as net:
        relay = await net.start()
        moving = await net.start([relay])
        journey = Journey(moving)
        nursery.start_soon(journey.roaming.run)
        await trio.sleep(5)
        journey.here = replace(HOME, ips=HOME.ips | {"172.17.0.1"})
        await trio.sleep(5)
        assert journey.events == []
        assert journey.roaming.changes == 0


async def test_a_peer_that_lies_about_where_we_are_has_us_start_anew_now_and_then_only(autojump_clock, nursery):
    async with swarm() as net:
        relay = await net.start()
        moving = await net.start([relay])
        journey = Journey(moving)
        nursery.start_soon(journey.roaming.run)
        for _ in range(1000):
            journey.roaming.suspect()
            await trio.sleep(0.1)
        assert journey.roaming.changes == 4
        await trio.sleep(30)
        assert journey.roaming.changes == 5, "what was said last was not lost"
        await trio.sleep(100)
        assert journey.roaming.changes == 5
        journey.here = CAFE
        await trio.sleep(5)
        assert journey.roaming.changes == 6, "what we see ourselves waits for nothing"
