"""AutoNAT v2, asked and answered: real hosts in memory, under a virtual clock."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import NATSettings
from hivemind_p2p.errors import StreamEnded, StreamError, StreamReset
from hivemind_p2p.nat import messages
from hivemind_p2p.nat.autonat import AUTONAT
from hivemind_p2p.nat.dial_requests import DIAL_BACK, DIAL_REQUEST, _is_fresh
from hivemind_p2p.nat.reachability import Verdict
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.wire import autonat_v2_pb2 as pb
from tests.nat.memory import Peer, Swarm, call, swarm

SILENT = NATSettings(autonat=False)
ROUTER = Multiaddr("/ip4/44.9.9.9/tcp/4001")
"""An address whose packets somebody forwards."""


def forward(net: Swarm, peer: Peer) -> None:
    net.wire.listeners["44.9.9.9", 4001] = net.wire.listeners[peer.ip, 4001]


async def send_request(stream: Stream, maddrs: Sequence[Multiaddr | str | bytes], nonce: int = 7) -> None:
    addrs = [each if isinstance(each, bytes) else Multiaddr(str(each)).to_bytes() for each in maddrs]
    await messages.send(stream, pb.Message(dial_request=pb.DialRequest(addrs=addrs, nonce=nonce)))


async def receive(stream: Stream) -> pb.Message:
    return await messages.receive(stream, pb.Message, largest=2**20)


async def ask(peer: Peer, server: Peer, *maddrs: Multiaddr | str | bytes) -> pb.DialResponse:
    """What the server answers to somebody who takes any number that it brings, and pays nothing."""

    async def take(stream: Stream) -> None:
        await messages.receive(stream, pb.DialBack)
        await messages.send(stream, pb.DialBackResponse())

    peer.host.set_stream_handler(DIAL_BACK, take)
    async with await peer.host.open_stream(server.peer_id, DIAL_REQUEST) as stream:
        await send_request(stream, maddrs)
        return (await receive(stream)).dial_response


async def quiet_pair(net: Swarm, server: NATSettings | None = None) -> tuple[Peer, Peer]:
    """A peer that does not ask by itself, and a server that it is connected to."""
    first = await net.start(nat=server)
    return await net.start([first], nat=SILENT), first


def verdict(peer: Peer, maddr: Multiaddr | None = None) -> Verdict:
    return peer.nat.autonat.reachability.verdict(maddr or peer.host.listen_maddrs[0], trio.current_time())


def versions(peer: Peer, maddr: Multiaddr | None = None) -> list[int]:
    found = peer.nat.autonat.reachability.evidence(maddr or peer.host.listen_maddrs[0], trio.current_time())
    return [each.version for each in found]


# Asking


@pytest.mark.parametrize("hidden", [False, True])
async def test_peers_that_speak_it_are_asked_by_it(autojump_clock, hidden):
    async with swarm() as net:
        first = await net.start()
        peer = await net.start([first], hidden=hidden)
        await trio.sleep(10)
        assert verdict(peer) is (Verdict.UNREACHABLE if hidden else Verdict.REACHABLE)
        assert versions(peer) == [2]


@pytest.mark.parametrize(("missing", "version"), [(DIAL_REQUEST, 1), (AUTONAT, 2)])
async def test_others_are_asked_by_what_they_speak(autojump_clock, missing, version):
    async with swarm() as net:
        first = await net.start()
        first.host.set_stream_handler(missing, None)
        peer = await net.start([first])
        await trio.sleep(10)
        assert (verdict(peer), versions(peer)) == (Verdict.REACHABLE, [version])


async def test_an_address_of_another_ip_is_tried_once_it_is_paid_for(autojump_clock):
    async with swarm() as net:
        first = await net.start()
        peer = await net.start([first], hidden=True, announce_maddrs=[ROUTER])
        forward(net, peer)
        [before] = peer.host.connections()
        sent = before.traffic.sent
        await trio.sleep(10)
        assert verdict(peer) is Verdict.UNREACHABLE
        assert verdict(peer, ROUTER) is Verdict.REACHABLE
        assert list(peer.nat.reachable_maddrs) == [ROUTER]
        assert 30_000 <= before.traffic.sent - sent <= 110_000


async def test_a_dial_back_becomes_no_connection_and_does_not_disturb_the_one_in_use(autojump_clock):
    async with swarm() as net:
        first = await net.start()
        peer = await net.start([first])
        await trio.sleep(10)
        assert versions(peer) == [2]
        assert len(peer.host.connections()) == len(first.host.connections()) == 1
        await call(peer, first)


# Servers that lie


async def lying(net: Swarm, serve) -> Peer:
    """A peer that has asked a server of which ``serve(server, stream, request)`` is the only word."""
    first = await net.start(nat=SILENT)

    async def handler(stream: Stream) -> None:
        await serve(first, stream, (await receive(stream)).dial_request)

    first.host.set_stream_handler(DIAL_REQUEST, handler)
    peer = await net.start([first])
    await trio.sleep(60)
    return peer


def response(status: int = 200, index: int = 0, dial: int = pb.OK) -> pb.Message:
    return pb.Message(dial_response=pb.DialResponse(status=status, addr_idx=index, dial_status=dial))


@pytest.mark.parametrize(
    "answer",
    [
        response(),
        response(index=1, dial=pb.E_DIAL_ERROR),
        response(status=100, dial=pb.E_DIAL_ERROR),
        response(dial=pb.E_DIAL_BACK_ERROR),
        response(status=7777),
        pb.Message(),
        pb.Message(dial_data_request=pb.DialDataRequest(num_bytes=2**40)),
        pb.Message(dial_request=pb.DialRequest(addrs=[b""])),
    ],
    ids=str,
)
async def test_what_proves_nothing_counts_for_nothing(autojump_clock, answer):
    async def serve(server: Peer, stream: Stream, request: pb.DialRequest) -> None:
        await messages.send(stream, answer)

    async with swarm() as net:
        assert verdict(await lying(net, serve)) is Verdict.UNKNOWN


async def test_a_number_counts_only_on_a_connection_that_was_opened_for_it(autojump_clock):
    async def serve(server: Peer, stream: Stream, request: pb.DialRequest) -> None:
        async with await server.host.open_stream(stream.peer_id, DIAL_BACK) as back:
            await messages.send(back, pb.DialBack(nonce=request.nonce))
            with pytest.raises(StreamError):
                await messages.receive(back, pb.DialBackResponse)
        await messages.send(stream, response())

    async with swarm() as net:
        assert verdict(await lying(net, serve)) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("more", "fresh"),
    [({}, True), ({"opened_at": 9.0}, False), ({"outbound": True}, False), ({"relay": "somebody"}, False)],
    ids=["fresh", "old", "ours", "relayed"],
)
def test_only_what_a_peer_dialled_since_is_fresh(more, fresh):
    connection = SimpleNamespace(**{"opened_at": 10.0, "outbound": False, "relay": None, **more})
    assert _is_fresh(connection, since=10.0) is fresh


async def test_a_number_counts_once_and_no_other_counts(autojump_clock):
    outcomes: list[str] = []

    async def serve(server: Peer, stream: Stream, request: pb.DialRequest) -> None:
        async def bring(connection) -> None:
            for nonce in (request.nonce ^ 1, request.nonce, request.nonce):
                async with await connection.open_stream(DIAL_BACK) as back:
                    await messages.send(back, pb.DialBack(nonce=nonce))
                    try:
                        await messages.receive(back, pb.DialBackResponse)
                        outcomes.append("taken")
                    except StreamError:
                        outcomes.append("refused")

        await server.host.visits.visit(stream.peer_id, Multiaddr(request.addrs[0]), bring)
        await messages.send(stream, response(dial=pb.E_DIAL_ERROR))

    async with swarm() as net:
        peer = await lying(net, serve)
        assert outcomes == ["refused", "taken", "refused"]
        assert verdict(peer) is Verdict.REACHABLE, "it got in, whatever it says"


async def test_a_server_that_goes_silent_is_given_up(autojump_clock):
    async def serve(server: Peer, stream: Stream, request: pb.DialRequest) -> None:
        await trio.sleep_forever()

    async with swarm() as net:
        peer = await lying(net, serve)
        assert "0 under way" in repr(peer.nat.autonat._requests)
        assert verdict(peer) is Verdict.UNKNOWN


# Serving


FORBIDDEN = [
    "/ip4/192.168.1.1/tcp/4001",
    "/ip4/127.0.0.1/tcp/4001",
    "/ip4/169.254.169.254/tcp/80",
    "/ip4/100.64.0.1/tcp/4001",
    "/ip4/0.0.0.0/tcp/4001",
    "/ip4/224.0.0.1/tcp/4001",
    "/ip4/44.0.0.1/tcp/4001",  # the server itself
    "/ip4/44.0.0.2/tcp/0",
    "/ip4/44.0.0.2/udp/4001/quic-v1",
    "/dns4/localhost/tcp/4001",
    "/dns4/example.com/tcp/4001",
    "/ip6/::1/tcp/4001",
    "/ip6/::ffff:44.0.0.2/tcp/4001",
    "/ip6/64:ff9b::7f00:1/tcp/4001",
    "/ip6/2002:7f00:1::/tcp/4001",
    "/ip4/44.0.0.2/tcp/4001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit",
    b"",
    b"\xff" * 40,
]


async def test_what_policy_forbids_is_never_dialled(autojump_clock):
    async with swarm() as net:
        peer, first = await quiet_pair(net)
        dialled = []
        first.host.visits.visit = lambda *args: dialled.append(args)
        for maddr in FORBIDDEN:
            assert (await ask(peer, first, maddr)).status == pb.DialResponse.E_DIAL_REFUSED, maddr
        assert (await ask(peer, first)).status == pb.DialResponse.E_DIAL_REFUSED
        assert not dialled


async def test_the_first_address_that_may_be_dialled_is(autojump_clock):
    async with swarm() as net:
        peer, first = await quiet_pair(net)
        [ours] = peer.host.listen_maddrs
        answer = await ask(peer, first, *FORBIDDEN, ours, f"/ip4/{peer.ip}/tcp/1")
        assert (answer.status, answer.addr_idx, answer.dial_status) == (200, len(FORBIDDEN), pb.OK)
        closed = await ask(peer, first, f"/ip4/{peer.ip}/tcp/1", ours)
        assert (closed.status, closed.addr_idx, closed.dial_status) == (200, 0, pb.E_DIAL_ERROR)
        assert (await ask(peer, first, *[b"x"] * 64, ours)).status == pb.DialResponse.E_DIAL_REFUSED


async def test_who_does_not_take_the_number_is_told(autojump_clock):
    async with swarm() as net:
        peer, first = await quiet_pair(net)
        async with await peer.host.open_stream(first.peer_id, DIAL_REQUEST) as stream:
            await send_request(stream, peer.host.listen_maddrs)
            assert (await receive(stream)).dial_response.dial_status == pb.E_DIAL_BACK_ERROR


async def pay(stream: Stream, sizes: Sequence[int]) -> None:
    for size in sizes:
        await messages.send(stream, pb.Message(dial_data_response=pb.DialDataResponse(data=bytes(size))))


@pytest.mark.parametrize("sizes", [[], [4096] * 7, [99] * 400, [4097], [0] * 50], ids=str)
async def test_who_does_not_pay_for_another_ip_is_not_served(autojump_clock, sizes):
    async with swarm() as net:
        peer, first = await quiet_pair(net)
        victim = await net.start(nat=SILENT)
        dialled = []
        first.host.visits.visit = lambda *args: dialled.append(args)
        async with await peer.host.open_stream(first.peer_id, DIAL_REQUEST) as stream:
            await send_request(stream, victim.host.listen_maddrs)
            wanted = (await receive(stream)).dial_data_request
            assert wanted.addr_idx == 0
            assert 30_000 <= wanted.num_bytes <= 100_000
            with trio.fail_after(16), pytest.raises((StreamReset, StreamEnded)):  # noqa: PT012 - any of them
                await pay(stream, sizes)
                await receive(stream)
        assert not dialled
        await call(peer, first)


async def test_who_pays_is_served_and_somebody_else_there_is_no_success(autojump_clock):
    async with swarm() as net:
        peer, first = await quiet_pair(net)
        victim = await net.start(nat=SILENT)
        for maddr in victim.host.listen_maddrs:
            async with await peer.host.open_stream(first.peer_id, DIAL_REQUEST) as stream:
                await send_request(stream, [maddr])
                wanted = (await receive(stream)).dial_data_request.num_bytes
                await pay(stream, [4096] * (wanted // 4096 + 1))
                assert (await receive(stream)).dial_response.dial_status == pb.E_DIAL_ERROR


@pytest.mark.parametrize(
    "garbage", [b"\xff\xff\x03", b"\x02\xff\xff", b"\x00", messages.encode(response()), b"\x81" * 9]
)
async def test_garbage_is_reset_and_hurts_nobody(autojump_clock, garbage):
    async with swarm() as net:
        peer, first = await quiet_pair(net)
        async with await peer.host.open_stream(first.peer_id, DIAL_REQUEST) as stream:
            await stream.send_all(garbage)
            with trio.fail_after(16), pytest.raises((StreamReset, StreamEnded)):
                await receive(stream)
        [ours] = peer.host.listen_maddrs
        assert (await ask(peer, first, ours)).dial_status == pb.OK


async def test_a_list_that_is_too_long_is_not_read(autojump_clock):
    async with swarm() as net:
        peer, first = await quiet_pair(net)
        with pytest.raises((StreamReset, StreamEnded)):
            await ask(peer, first, *[f"/ip4/44.1.0.{n % 256}/tcp/4001" for n in range(2000)])


async def test_there_are_so_many_requests_in_a_minute_and_fewer_to_other_ips(autojump_clock):
    async with swarm() as net:
        peer, first = await quiet_pair(net, NATSettings(autonat_per_minute=40))
        victim = await net.start(nat=SILENT)
        [theirs], [ours] = victim.host.listen_maddrs, peer.host.listen_maddrs
        rejected = pb.DialResponse.E_REQUEST_REJECTED
        for _ in range(2):  # a third of a fifth; the server waits for its pay
            async with await peer.host.open_stream(first.peer_id, DIAL_REQUEST) as stream:
                await send_request(stream, [theirs])
                assert (await receive(stream)).HasField("dial_data_request")
        assert (await ask(peer, first, theirs)).status == rejected
        assert [(await ask(peer, first, ours)).status for _ in range(2)] == [200, rejected]
        await trio.sleep(61)
        assert (await ask(peer, first, ours)).status == 200


async def test_there_are_so_many_at_once(autojump_clock):
    async with swarm() as net:
        first = await net.start(nat=NATSettings(autonat_per_minute=1000))
        slow, peer = await net.start([first], nat=SILENT), await net.start([first], nat=SILENT)
        net.wire.silent.add(slow.ip)
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(ask, slow, first, *slow.host.listen_maddrs)
            await trio.sleep(1)
            assert "16 under way" in repr(first.nat.autonat._dial_backs)
            assert (await ask(peer, first, *peer.host.listen_maddrs)).status == pb.DialResponse.E_REQUEST_REJECTED
        assert (await ask(peer, first, *peer.host.listen_maddrs)).status == 200


async def test_who_comes_through_a_relay_is_refused(autojump_clock):
    async with swarm() as net:
        first = await net.start()
        quiet = NATSettings(hole_punching=False)
        hidden = await net.start([first], hidden=True, nat=quiet)
        other = await net.start([first], hidden=True, nat=quiet)
        await other.host.connect(hidden.circuits[0])
        assert (await ask(other, hidden, *other.host.listen_maddrs)).status == pb.DialResponse.E_DIAL_REFUSED
