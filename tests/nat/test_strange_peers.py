"""What peers say of themselves and of us, made to hurt: it hurts nobody. Hosts in memory, under a virtual clock."""

from __future__ import annotations

import pytest
import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify
from multiaddr import Multiaddr

from hivemind_p2p.nat.autonat import AUTONAT
from hivemind_p2p.nat.dial_requests import DIAL_REQUEST
from hivemind_p2p.nat.hole_punching import HolePuncher
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.transport.identify import IDENTIFY, PUSH
from hivemind_p2p.transport.report import report
from hivemind_p2p.wire import circuit_pb2 as pb
from hivemind_p2p.wire.framing import varint
from tests.nat.memory import Peer, call, swarm
from tests.nat.test_relaying import hop, say_nothing


def says(peer: Peer, message: bytes) -> None:
    """Have a peer give this answer to whoever asks who it is."""

    async def answer(stream: Stream) -> None:
        await stream.send_all(varint(len(message)) + message)

    peer.host.set_stream_handler(IDENTIFY, answer)


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


@pytest.mark.parametrize("seen", ["/dns4/localhost/tcp/4001", "/dns/example.com/tcp/1", "/dns6/example.com/tcp/1"])
async def test_a_peer_that_sees_us_at_a_name_is_not_believed(autojump_clock, seen: str):
    async with swarm() as net:
        liar, node = await net.start(), await net.start()
        protocols = sorted(liar.host._handlers)
        says(liar, Identify(observed_addr=Multiaddr(seen).to_bytes(), protocols=protocols).SerializeToString())
        await node.host.connect(liar.maddrs[0])
        await trio.sleep(1)
        assert seen not in map(str, node.nat.observed.maddrs(trio.current_time()))
        assert await call(node, liar)


async def test_a_peer_that_sees_us_elsewhere_again_and_again_makes_us_ask_now_and_then(autojump_clock):
    async with swarm() as net:
        first = await net.start()
        node = await net.start([first])
        liar = await net.start([node])
        await trio.sleep(60)
        for protocol in (AUTONAT, DIAL_REQUEST):
            liar.host.set_stream_handler(protocol, say_nothing)
        [connection] = liar.host.connections(node.peer_id)
        tasks = trio.lowlevel.current_statistics().tasks_living
        for number in range(200):
            seen = Multiaddr(f"/ip4/99.0.0.{number}/tcp/9").to_bytes()
            lie = Identify(observed_addr=seen, protocols=sorted(liar.host._handlers)).SerializeToString()
            async with await connection.open_stream(PUSH) as stream:
                await stream.send_all(varint(len(lie)) + lie)
            await trio.sleep(0.1)
        assert trio.lowlevel.current_statistics().tasks_living < tasks + 20


async def test_a_peer_whose_names_are_no_text_is_punched_through_to_and_reported_like_others(
    autojump_clock, monkeypatch
):
    async with swarm() as net:
        relay = await net.start()
        node = await net.start([relay], hidden=True)
        stranger = await net.start([relay], hidden=True)
        says(stranger, field(6, b"agent \xff\xfe") + field(3, b"/\xff") + field(3, b"/known"))
        ended = trio.Event()
        lead = HolePuncher.lead

        async def watched(puncher: HolePuncher, connection: object) -> None:
            try:
                await lead(puncher, connection)
            finally:
                ended.set()

        monkeypatch.setattr(HolePuncher, "lead", watched)
        await stranger.host.connect(node.circuits[0])
        await trio.sleep(5)
        assert not ended.is_set(), "the node goes on trying"
        described = node.host.connections(stranger.peer_id)[0].description
        assert described.agent == "agent " + 2 * "\N{REPLACEMENT CHARACTER}"
        assert described.protocols == {"/\N{REPLACEMENT CHARACTER}", "/known"}
        assert (await report(node.host.connections(stranger.peer_id), 0))[0].agent.startswith("agent ")


async def test_a_reservation_of_a_peer_that_never_said_who_it_is_ends_with_its_connection(autojump_clock):
    async with swarm() as net:
        relay, guest = await net.start(), await net.start()

        async def silence(stream: Stream) -> None:
            await stream.reset()

        guest.host.set_stream_handler(IDENTIFY, silence)
        await guest.host.connect(relay.maddrs[0])
        assert (await hop(guest, relay, type=pb.HopMessage.RESERVE)).status == pb.OK
        assert relay.nat.service.book.reservations == 1
        await guest.turn_off()
        await trio.sleep(60)
        assert relay.host.connections(guest.peer_id) == []
        other = await net.start()
        await other.host.connect(relay.maddrs[0])
        status = (await hop(other, relay, type=pb.HopMessage.CONNECT, peer=pb.Peer(id=guest.peer_id.to_bytes()))).status
        assert status == pb.NO_RESERVATION
