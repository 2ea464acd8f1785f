"""Dial backs asked for and done: real hosts in memory, under a virtual clock."""

from __future__ import annotations

import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import NATSettings
from hivemind_p2p.nat import messages
from hivemind_p2p.nat.autonat import AUTONAT
from hivemind_p2p.nat.reachability import Verdict
from hivemind_p2p.wire.autonat_pb2 import Message
from tests.nat.memory import Peer, call, swarm


async def ask(peer: Peer, server: Peer, *maddrs: str | Multiaddr, who: bytes | None = None) -> Message.DialResponse:
    info = Message.PeerInfo(
        id=peer.peer_id.to_bytes() if who is None else who, addrs=[Multiaddr(str(maddr)).to_bytes() for maddr in maddrs]
    )
    async with await peer.host.open_stream(server.peer_id, AUTONAT) as stream:
        await messages.send(stream, Message(type=Message.DIAL, dial=Message.Dial(peer=info)))
        return (await messages.receive(stream, Message)).dial_response


def verdict(peer: Peer) -> Verdict:
    [maddr] = peer.host.listen_maddrs
    return peer.nat.autonat.reachability.verdict(maddr, trio.current_time())


async def test_an_open_peer_learns_that_it_is_reached_needs_no_relay_and_becomes_one(autojump_clock):
    async with swarm() as net:
        first = await net.start()
        peer = await net.start([first])
        await trio.sleep(1)
        assert verdict(peer) is Verdict.REACHABLE
        assert list(peer.nat.reachable_maddrs) == list(peer.host.listen_maddrs)
        assert peer.nat.relays == []
        assert peer.circuits == []
        assert peer.nat.service.serving
        hidden = await net.start([peer], hidden=True)
        assert hidden.nat.relays == [peer.peer_id]


async def test_a_hidden_peer_learns_that_it_is_not_reached_and_keeps_its_relay(autojump_clock):
    async with swarm() as net:
        first = await net.start()
        hidden = await net.start([first], hidden=True)
        assert verdict(hidden) is Verdict.UNKNOWN
        await trio.sleep(10)
        assert verdict(hidden) is Verdict.UNREACHABLE
        assert hidden.nat.relays == [first.peer_id]
        assert not hidden.nat.service.serving


async def test_a_peer_whose_way_is_blocked_later_finds_out_and_is_reached_through_a_relay(autojump_clock):
    async with swarm() as net:
        first = await net.start()
        peer = await net.start([first])
        await trio.sleep(1)
        assert peer.nat.service.serving
        net.wire.silent.add(peer.ip)
        await trio.sleep(1200)
        assert verdict(peer) is Verdict.UNREACHABLE
        assert not peer.nat.service.serving
        other = await net.start([first], hidden=True, nat=NATSettings(hole_punching=False))
        await other.host.connect(peer.circuits[0])
        assert (await call(other, peer)).relay == first.peer_id


async def test_a_dial_back_becomes_no_connection(autojump_clock):
    async with swarm() as net:
        first = await net.start()
        peer = await net.start([first])
        answer = await ask(peer, first, *peer.host.listen_maddrs)
        assert answer.status == Message.OK
        assert answer.addr == peer.host.listen_maddrs[0].to_bytes()
        await trio.sleep(1)
        assert len(peer.host.connections()) == len(first.host.connections()) == 1


async def test_only_the_ip_that_the_asker_comes_from_is_dialled(autojump_clock):
    async with swarm() as net:
        first, victim = await net.start(), await net.start()
        peer = await net.start([first])
        [theirs], [ours] = victim.host.listen_maddrs, peer.host.listen_maddrs
        assert (await ask(peer, first, theirs)).status == Message.E_DIAL_REFUSED
        assert (await ask(peer, first, theirs, ours)).addr == ours.to_bytes()
        closed = f"/ip4/{peer.ip}/tcp/1"
        assert (await ask(peer, first, closed)).status == Message.E_DIAL_ERROR
        assert (await ask(peer, first, f"/ip4/{peer.ip}/tcp/0", "/dns4/example.com/tcp/1")).status == (
            Message.E_DIAL_REFUSED
        )


@pytest.mark.parametrize("who", [b"", b"somebody else"])
async def test_nobody_asks_for_another(autojump_clock, who: bytes):
    async with swarm() as net:
        first = await net.start()
        peer = await net.start([first])
        assert (await ask(peer, first, *peer.host.listen_maddrs, who=who)).status == Message.E_BAD_REQUEST


async def test_who_comes_through_a_relay_is_refused(autojump_clock):
    async with swarm() as net:
        first = await net.start()
        quiet = NATSettings(hole_punching=False)
        hidden = await net.start([first], hidden=True, nat=quiet)
        other = await net.start([first], hidden=True, nat=quiet)
        await other.host.connect(hidden.circuits[0])
        assert (await ask(other, hidden, *other.host.listen_maddrs)).status == Message.E_DIAL_REFUSED


async def test_there_are_so_many_dial_backs_in_a_minute(autojump_clock):
    async with swarm() as net:
        first = await net.start(nat=NATSettings(autonat_per_minute=20))
        peer = await net.start([first], nat=NATSettings(autonat=False))
        [ours] = peer.host.listen_maddrs
        statuses = [(await ask(peer, first, ours)).status for _ in range(4)]
        assert statuses == [Message.OK] * 2 + [Message.E_DIAL_REFUSED] * 2, "a tenth is for one peer"
        await trio.sleep(61)
        assert (await ask(peer, first, ours)).status == Message.OK
