"""Who leads a hole punch, who follows, and for how long it is tried: hosts in memory, under a virtual clock."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import trio.testing
from multiaddr import Multiaddr

from hivemind_p2p.config import NATSettings
from hivemind_p2p.errors import StreamError
from hivemind_p2p.nat import messages
from hivemind_p2p.nat.hole_punching import DCUTR
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.transport.connection import MuxedConnection
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.memory import MemoryTransport, MemoryWire
from hivemind_p2p.transport.punch import Puncher
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.wire.dcutr_pb2 import HolePunch
from hivemind_p2p.wire.peer_id import PeerID
from tests.nat.memory import Peer, Swarm, call, swarm

MANY_ROUNDS = NATSettings(punch_rounds=1000)


async def relayed_pair(
    net: Swarm, nat: NATSettings | None = None, *, leader_is_smaller: bool = True
) -> tuple[Peer, Peer]:
    """Two peers that no dial reaches, connected through a relay; the first one leads."""
    identities = sorted((Identity.generate() for _ in range(2)), key=lambda identity: identity.peer_id)
    if not leader_is_smaller:
        identities.reverse()
    relay = await net.start()
    leader = await net.start([relay], hidden=True, nat=nat, identity=identities[0])
    other = await net.start([relay], hidden=True, nat=nat, identity=identities[1])
    await other.host.connect(leader.circuits[0])
    await call(other, leader)  # both have the connection now
    return leader, other


async def ask(peer: Peer, leader: Peer) -> tuple[Stream, HolePunch]:
    """Begin a hole punch by hand; the answer."""
    [connection] = peer.host.connections(leader.peer_id)
    stream = await connection.open_stream(DCUTR)
    await messages.send(stream, HolePunch(type=HolePunch.CONNECT))
    return stream, await messages.receive(stream, HolePunch)


def direct(one: Peer, other: Peer) -> MuxedConnection | None:
    return next((each for each in one.host.connections(other.peer_id) if each.relay is None), None)


async def until_direct(one: Peer, other: Peer) -> None:
    while True:
        if direct(one, other) is not None:
            return
        await trio.sleep(0.01)


@pytest.mark.parametrize("minutes", [0.5, 30])
async def test_punching_is_tried_again_until_it_works(autojump_clock, minutes: float):
    async with swarm() as net:
        leader, other = await relayed_pair(net)
        await trio.sleep(60 * minutes)
        assert direct(leader, other) is None
        assert leader.nat.puncher.failed > 1
        net.wire.silent.discard(other.ip)
        with trio.fail_after(2 * 60 * minutes):
            await until_direct(leader, other)
            await until_direct(other, leader)
        assert (await call(other, leader)).relay is None
        assert leader.nat.puncher.succeeded == 1
        assert repr(leader.nat.puncher).startswith("<HolePuncher: 1 succeeded, ")


async def test_when_the_direct_connection_is_gone_punching_starts_again(autojump_clock):
    async with swarm() as net:
        leader, other = await relayed_pair(net)
        net.wire.silent.discard(other.ip)
        with trio.fail_after(30):
            await until_direct(leader, other)
        connection = direct(leader, other)
        assert connection is not None
        await connection.aclose()
        await call(other, leader)
        with trio.fail_after(30):
            await until_direct(leader, other)


async def test_of_two_that_lead_the_larger_id_gives_way(autojump_clock):
    async with swarm() as net:
        leader, other = await relayed_pair(net, MANY_ROUNDS, leader_is_smaller=False)
        await trio.sleep(0.5)
        stream, answer = await ask(other, leader)
        assert answer.type == HolePunch.CONNECT
        await stream.reset()


async def test_of_two_that_lead_the_smaller_id_goes_on(autojump_clock):
    async with swarm() as net:
        leader, other = await relayed_pair(net, MANY_ROUNDS)
        await trio.sleep(0.5)
        with pytest.raises(StreamError):
            await ask(other, leader)


async def test_a_leader_that_begins_anew_is_followed_anew(autojump_clock):
    async with swarm() as net:
        leader, other = await relayed_pair(net, NATSettings(hole_punching=False))
        other.nat.puncher.start()
        first, _ = await ask(leader, other)
        second, answer = await ask(leader, other)
        assert answer.type == HolePunch.CONNECT
        with trio.fail_after(1):
            assert await first.receive_some() == b"", "the first one has ended"
        await second.reset()


async def test_a_flood_of_punch_requests_is_refused_and_others_are_served(autojump_clock):
    async with swarm() as net:
        leader, other = await relayed_pair(net, NATSettings(hole_punching=False, punches_per_minute=50))
        other.nat.puncher.start()
        answered = 0
        for _ in range(100):
            with suppress(StreamError):
                stream, _answer = await ask(leader, other)
                answered += 1
                await stream.reset()
        assert answered == 5, "a tenth is for one peer"
        assert await call(leader, other)
        await trio.sleep(61)
        stream, _answer = await ask(leader, other)
        await stream.reset()


async def test_whatever_a_peer_names_so_many_addresses_are_dialled():
    async with trio.open_nursery() as nursery:
        dials = Dials()
        puncher = Puncher(nursery, dials, no_adoption)
        for start in range(0, 100, 5):
            with puncher.punching(Identity.generate().peer_id if not start else PEER, is_client=True) as punch:
                punch.dial(Multiaddr(f"/ip4/44.1.1.{last}/tcp/1") for last in range(start, start + 5))
        await trio.testing.wait_all_tasks_blocked()
        assert len(dials.maddrs) == 5 + 16
        assert len(set(dials.maddrs)) == len(dials.maddrs)
        nursery.cancel_scope.cancel()


PEER = Identity.generate().peer_id


class Dials(MemoryTransport):
    """Dials that are never answered."""

    def __init__(self) -> None:
        super().__init__(MemoryWire(), "44.0.0.1")
        self.maddrs: list[Multiaddr] = []

    async def dial(self, maddr: Multiaddr) -> RawConnection:
        self.maddrs.append(maddr)
        await trio.sleep_forever()


async def no_adoption(raw: RawConnection, peer_id: PeerID, *, as_client: bool) -> MuxedConnection:
    raise AssertionError("nobody answers")
