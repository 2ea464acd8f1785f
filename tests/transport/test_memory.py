"""Real hosts over memory, under a virtual clock: what takes long there takes no time here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.io.exceptions import IncompleteReadError
from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import DialError, ListenError, StreamReset
from hivemind_p2p.transport.addresses import split_peer
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identify import IDENTIFY
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.memory import MemoryWire
from tests.transport.hosts import ECHO, echo, roundtrip


def listening_host(wire: MemoryWire, number: int, settings: TransportSettings | None = None) -> Host:
    ip = f"10.0.0.{number}"
    host = Host(
        Identity.generate(),
        host_maddrs=[Multiaddr(f"/ip4/{ip}/tcp/4001")],
        transport=wire.transport(ip),
        settings=settings,
    )
    host.set_stream_handler(ECHO, echo)
    return host


@asynccontextmanager
async def pair(latency: float = 0.0) -> AsyncIterator[tuple[MemoryWire, Host, Host]]:
    wire = MemoryWire(latency=latency)
    async with listening_host(wire, 1) as one, listening_host(wire, 2) as two:
        one.add_addresses(two.peer_id, two.visible_maddrs)
        two.add_addresses(one.peer_id, one.visible_maddrs)
        yield wire, one, two


async def test_a_connection_lives_through_a_virtual_day(autojump_clock):
    async with pair(latency=0.05) as (_, one, two):
        assert await roundtrip(one, two) == b"ping"
        await trio.sleep(24 * 3600)
        assert await roundtrip(one, two) == b"ping"
        assert len(one.connections()) == 1


async def test_connecting_costs_one_round_trip_more_than_tcp_itself(autojump_clock):
    async with pair(latency=0.05) as (_, one, two):
        started = trio.current_time()
        await one.connect(two.visible_maddrs[0])
        assert trio.current_time() - started == pytest.approx(0.2)


async def test_a_call_costs_one_round_trip_when_the_peer_said_that_it_speaks_the_protocol(autojump_clock):
    async with pair(latency=0.05) as (_, one, two):
        await one.connect(two.visible_maddrs[0])
        await trio.sleep(10)
        before = trio.current_time()
        stream = await one.open_stream(two.peer_id, ECHO)
        assert trio.current_time() == before
        await stream.send_all(b"x")
        await stream.read_exactly(1)
        assert trio.current_time() - before == pytest.approx(0.1)
        await stream.send_all(b"x")
        await stream.read_exactly(1)
        assert trio.current_time() - before == pytest.approx(0.2)


async def test_the_first_call_of_a_protocol_that_came_later_costs_one_more(autojump_clock):
    async with pair(latency=0.05) as (_, one, two):
        await one.connect(two.visible_maddrs[0])
        await trio.sleep(10)
        two.set_stream_handler("/later", echo)
        for expected in (0.2, 0.1, 0.1):
            before = trio.current_time()
            async with await one.open_stream(two.peer_id, "/later") as stream:
                await stream.send_all(b"x")
                await stream.read_exactly(1)
            assert trio.current_time() - before == pytest.approx(expected)


async def test_a_large_transfer_fits_through_bounded_queues(autojump_clock):
    data = bytes(3_000_000)
    async with pair(latency=0.01) as (_, one, two):
        stream = await one.open_stream(two.peer_id, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            assert await stream.read_exactly(len(data)) == data


async def test_a_slow_reader_is_waited_for(autojump_clock):
    done = trio.Event()

    async def slow(stream: Stream) -> None:
        await trio.sleep(60)
        await stream.read_exactly(1_000_000)
        done.set()

    async with pair() as (_, one, two):
        two.set_stream_handler("/slow", slow)
        stream = await one.open_stream(two.peer_id, "/slow")
        await stream.send_all(bytes(1_000_000))
        await done.wait()
        assert trio.current_time() >= 60


async def test_a_stream_opened_in_silence_is_given_up_by_both_sides(autojump_clock):
    async with pair() as (_, one, two):
        await one.connect(two.visible_maddrs[0])
        [connection] = one.connections()
        stream = await connection._muxer.open_stream()
        with pytest.raises(StreamReset):
            await stream.read_exactly(1)
        assert trio.current_time() >= TransportSettings().negotiate_timeout


async def test_addresses_are_raced_with_a_stagger(autojump_clock):
    async with pair() as (wire, _, two):
        wire.silent |= {"10.9.9.1", "10.9.9.2"}
        two_good = split_peer(two.visible_maddrs[0])[0]
        async with Host(Identity.generate(), transport=wire.transport("10.0.0.3")) as three:
            silent = [Multiaddr(f"/ip4/10.9.9.{last}/tcp/1") for last in (1, 2)]
            three.add_addresses(two.peer_id, [*silent, two_good])
            before = trio.current_time()
            await three.connect(Multiaddr(f"{silent[0]}/p2p/{two.peer_id}"))
            assert trio.current_time() - before == pytest.approx(0.5)


async def test_a_peer_that_never_answers_is_bounded_and_backed_off(autojump_clock):
    wire, peer_id = MemoryWire(), Identity.generate().peer_id
    wire.silent.add("10.9.9.1")
    async with Host(Identity.generate(), transport=wire.transport("10.0.0.3")) as host:
        host.add_addresses(peer_id, [Multiaddr("/ip4/10.9.9.1/tcp/1")])
        with pytest.raises(DialError, match="no answer within 10 s"):
            await host.open_stream(peer_id, ECHO)
        assert trio.current_time() == pytest.approx(10.0)
        with pytest.raises(DialError, match="not tried again"):
            await host.open_stream(peer_id, ECHO)
        assert trio.current_time() == pytest.approx(10.0)


async def test_the_last_one_to_give_up_ends_the_dial(autojump_clock):
    wire, peer_id = MemoryWire(), Identity.generate().peer_id
    wire.silent.add("10.9.9.1")
    async with Host(Identity.generate(), transport=wire.transport("10.0.0.3")) as host:
        with trio.move_on_after(1):
            await host.connect(Multiaddr(f"/ip4/10.9.9.1/tcp/1/p2p/{peer_id}"))
        assert host._dialer is not None
        await trio.testing.wait_all_tasks_blocked()
        assert repr(host._dialer) == "<Dialer, 0 dials under way>"
        assert host._nursery is not None
        assert len(host._nursery.child_tasks) == 0


async def test_cross_dials_settle_on_one_connection_and_lose_no_stream(autojump_clock):
    async with pair(latency=0.02) as (_, one, two):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(roundtrip, one, two, b"one to two")
                nursery.start_soon(roundtrip, two, one, b"two to one")
        assert len(one.connections()) == len(two.connections()) == 2
        early = await one.open_stream(two.peer_id, ECHO)
        await trio.sleep(30)
        assert len(one.connections()) == len(two.connections()) == 1
        smaller = min(one, two, key=lambda host: host.peer_id)
        assert smaller.connections()[0].outbound
        await early.send_all(b"still open")
        assert await early.read_exactly(10) == b"still open"


async def test_identify_tells_where_a_peer_listens(autojump_clock):
    async with pair() as (wire, one, _):
        async with listening_host(wire, 3) as three:
            await three.connect(one.visible_maddrs[0])
            await trio.testing.wait_all_tasks_blocked()
            assert [str(maddr) for maddr in one.addresses(three.peer_id)] == ["/ip4/10.0.0.3/tcp/4001"]
        assert one.connections(three.peer_id) == []


@pytest.mark.parametrize("garbage", [b"\xff", b"\xa5\x03", b"\xff" * 40, b"6" + b"\xff" * 9 + b"\x01", b""])
async def test_a_peer_that_says_garbage_about_itself_hurts_nobody(autojump_clock, garbage: bytes):
    async with pair() as (_, one, two):
        said = Identify(listen_addrs=[garbage, one.listen_maddrs[0].to_bytes()], observed_addr=garbage)

        async def answer(stream: Stream) -> None:
            await stream.send_all(bytes([said.ByteSize()]) + said.SerializeToString())

        one.set_stream_handler(IDENTIFY, answer)
        await two.connect(one.visible_maddrs[0])
        await trio.testing.wait_all_tasks_blocked()
        [connection] = two.connections()
        assert connection.description.maddrs[-1] == one.listen_maddrs[0]
        assert await roundtrip(two, one) == b"ping"


async def test_who_says_nothing_keeps_nobody_from_elsewhere_out(autojump_clock):
    wire = MemoryWire()
    narrow = TransportSettings(max_handshakes=4)
    async with listening_host(wire, 1, narrow) as server, listening_host(wire, 2) as client:
        silent = [await wire.transport("10.0.0.9").dial(server.listen_maddrs[0]) for _ in range(4)]
        await trio.testing.wait_all_tasks_blocked()
        assert repr(server._handshakes) == "<Handshakes, 4 of 4>"
        client.add_addresses(server.peer_id, server.visible_maddrs)
        assert await roundtrip(client, server) == b"ping"
        assert len(server._handshakes) == 3, "the oldest one made room"
        silent.append(await wire.transport("10.0.0.9").dial(server.listen_maddrs[0]))
        silent.append(await wire.transport("10.0.0.9").dial(server.listen_maddrs[0]))
        await trio.testing.wait_all_tasks_blocked()
        assert len(server._handshakes) == 4
        with pytest.raises(IncompleteReadError):
            await silent[-1].read(1)
        await trio.sleep(11)
        assert len(server._handshakes) == 0


async def test_addresses_on_the_wire_are_checked_like_sockets():
    wire = MemoryWire()
    async with listening_host(wire, 1):
        with pytest.raises(ListenError, match="another host listens there"):
            async with listening_host(wire, 1):
                pass
    with pytest.raises(ListenError, match=r"address of this host is 10\.0\.0\.2"):
        async with Host(
            Identity.generate(), host_maddrs=[Multiaddr("/ip4/10.0.0.9/tcp/1")], transport=wire.transport("10.0.0.2")
        ):
            pass
    assert repr(wire) == "<MemoryWire with 0 listeners>"
