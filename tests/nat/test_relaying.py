"""Peers that nobody can dial, reached through relays: real hosts in memory, under a virtual clock."""

from __future__ import annotations

import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import NATSettings, RelaySettings
from hivemind_p2p.errors import DialError, StreamError
from hivemind_p2p.nat import messages, vouchers
from hivemind_p2p.nat.relay_service import HOP, STOP
from hivemind_p2p.transport.api import CircuitLimit, Stream
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.wire import circuit_pb2 as pb
from tests.nat.memory import Peer, Swarm, call, swarm
from tests.transport.hosts import ECHO

STRANGER = Identity.generate()
NO_PUNCHING = NATSettings(hole_punching=False)


async def say_nothing(stream: Stream) -> None:
    await trio.sleep_forever()


async def hop(peer: Peer, relay: Peer, /, **request: object) -> pb.HopMessage:
    """Ask a relay for something by hand."""
    async with await peer.host.open_stream(relay.peer_id, HOP) as stream:
        await messages.send(stream, pb.HopMessage(**request))
        return await messages.receive(stream, pb.HopMessage)


async def trio_of(net: Swarm, relay: RelaySettings | None = None) -> tuple[Peer, Peer, Peer]:
    """A relay, a hidden peer with a reservation there, and one that wants it."""
    middle = await net.start(relay=relay)
    hidden = await net.start([middle], hidden=True, nat=NO_PUNCHING)
    return middle, hidden, await net.start([middle], hidden=True, nat=NO_PUNCHING)


async def test_a_hidden_peer_is_reached_at_the_circuit_address_that_it_announces(autojump_clock):
    async with swarm() as net:
        relay, hidden, other = await trio_of(net)
        assert hidden.nat.relays == [relay.peer_id]
        assert str(hidden.circuits[0]).endswith(
            f"{relay.ip}/tcp/4001/p2p/{relay.peer_id}/p2p-circuit/p2p/{hidden.peer_id}"
        )
        await other.host.connect(hidden.circuits[0])
        connection = await call(other, hidden)
        assert connection.relay == relay.peer_id
        assert connection.limit is None
        assert "relayed to" in repr(connection)
        [at_the_other_end] = hidden.host.connections(other.peer_id)
        assert at_the_other_end.relay == relay.peer_id
        assert await call(hidden, other) is not None, "both ways over the same connection"
        assert "2 reservations, 1 circuits" in repr(relay.nat)


async def test_a_relayed_connection_carries_much(autojump_clock):
    async with swarm() as net:
        _, hidden, other = await trio_of(net)
        await other.host.connect(hidden.circuits[0])
        await call(other, hidden, bytes(range(256)) * 4096)


async def test_circuits_through_one_relay_do_not_mix(autojump_clock):
    async with swarm() as net:
        relay, hidden, other = await trio_of(net)
        third = await net.start([relay], hidden=True, nat=NO_PUNCHING)
        for each in (other, third):
            await each.host.connect(hidden.circuits[0])
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(call, other, hidden, b"other%d" % number * 5000)
                nursery.start_soon(call, third, hidden, b"third%d" % number * 5000)
        assert relay.nat.service.book.circuits == 2
        await other.turn_off()
        await trio.sleep(1)
        assert relay.nat.service.book.circuits == 1
        await call(third, hidden)


async def test_a_circuit_above_its_limit_of_bytes_is_cut_and_says_its_limit(autojump_clock):
    async with swarm() as net:
        _, hidden, other = await trio_of(net, RelaySettings(circuit_bytes=100_000, circuit_time=60))
        await other.host.connect(hidden.circuits[0])
        connection = await call(other, hidden)
        assert connection.limit == CircuitLimit(seconds=60, size=100_000)
        assert "limited" in repr(connection)
        with pytest.raises(StreamError), trio.fail_after(30):
            await call(other, hidden, bytes(200_000))
        await connection.ended.wait()
        await other.host.connect(hidden.circuits[0])
        await call(other, hidden)


async def test_a_circuit_above_its_limit_of_time_is_cut(autojump_clock):
    async with swarm() as net:
        relay, hidden, other = await trio_of(net, RelaySettings(circuit_time=60))
        began = trio.current_time()
        await other.host.connect(hidden.circuits[0])
        connection = await call(other, hidden)
        await connection.ended.wait()
        assert trio.current_time() - began == pytest.approx(60, abs=2)
        assert relay.nat.service.book.circuits == 0


async def test_a_reservation_is_renewed_before_it_ends(autojump_clock):
    async with swarm() as net:
        _, hidden, other = await trio_of(net, RelaySettings(reservation_time=600))
        await trio.sleep(7200)
        await other.host.connect(hidden.circuits[0])
        await call(other, hidden)


async def test_two_relays_are_held_and_a_lost_one_is_replaced_within_seconds(autojump_clock):
    async with swarm() as net:
        relays = [await net.start() for _ in range(3)]
        hidden = await net.start(relays, hidden=True)
        await trio.sleep(1)
        assert len(hidden.nat.relays) == 2
        first = next(relay for relay in relays if relay.peer_id == hidden.nat.relays[0])
        await first.turn_off()
        await trio.sleep(3)
        assert len(hidden.nat.relays) == 2
        assert first.peer_id not in hidden.nat.relays
        assert not any(first.peer_id.base58 in str(maddr) for maddr in hidden.maddrs)


async def test_a_relay_that_comes_back_is_used_again(autojump_clock):
    async with swarm() as net:
        relay = await net.start()
        hidden = await net.start([relay], hidden=True)
        await relay.turn_off()
        await trio.sleep(30)
        assert hidden.circuits == []
        net._count -= 2  # the address of the relay is free again
        again = await net.start(identity=relay.host.identity)
        await trio.sleep(61)
        assert hidden.nat.relays == [again.peer_id]


async def test_a_relay_without_room_is_passed_over(autojump_clock):
    async with swarm() as net:
        full = await net.start(relay=RelaySettings(max_reservations=1))
        await net.start([full], hidden=True)
        free = await net.start()
        hidden = await net.start([full, free], hidden=True)
        assert hidden.nat.relays == [free.peer_id]


async def test_a_silent_relay_does_not_keep_a_node_from_starting(autojump_clock):
    async with swarm() as net:
        silent, good = await net.start(), await net.start()
        silent.host.set_stream_handler(HOP, say_nothing)
        began = trio.current_time()
        hidden = await net.start([silent, good], hidden=True)
        assert hidden.nat.relays == [good.peer_id]
        assert trio.current_time() - began < 5


@pytest.mark.parametrize("expire", [0, 1, 2**63])
async def test_a_relay_that_lies_about_time_is_asked_again_in_a_sane_time(autojump_clock, expire: int):
    async with swarm() as net:
        liar, asked = await net.start(), []

        async def lie(stream):
            await messages.receive(stream, pb.HopMessage)
            asked.append(trio.current_time())
            reservation = pb.Reservation(expire=expire, addrs=[b"garbage", *(m.to_bytes() for m in liar.maddrs)])
            await messages.send(stream, pb.HopMessage(type=pb.HopMessage.STATUS, status=pb.OK, reservation=reservation))

        liar.host.set_stream_handler(HOP, lie)
        hidden = await net.start([liar], hidden=True)
        assert len(hidden.circuits) == 1
        await trio.sleep(1800)
        assert len(asked) <= 60


async def test_a_relay_gives_a_voucher_that_holds(autojump_clock):
    async with swarm() as net:
        relay, _, other = await trio_of(net)
        reservation = (await hop(other, relay, type=pb.HopMessage.RESERVE)).reservation
        assert vouchers.why_wrong(reservation.voucher, relay.peer_id, other.peer_id, reservation.expire) is None


@pytest.mark.parametrize(
    "voucher",
    [b"", b"garbage", vouchers.seal(STRANGER, STRANGER.peer_id, 2**40)],
    ids=["none", "garbage", "of another"],
)
async def test_a_relay_that_gives_a_wrong_voucher_is_not_used_one_that_gives_none_is(autojump_clock, voucher: bytes):
    async with swarm() as net:
        liar, good = await net.start(), await net.start()

        async def lie(stream: Stream) -> None:
            await messages.receive(stream, pb.HopMessage)
            reservation = pb.Reservation(expire=2**32, addrs=[m.to_bytes() for m in liar.maddrs], voucher=voucher)
            await messages.send(stream, pb.HopMessage(type=pb.HopMessage.STATUS, status=pb.OK, reservation=reservation))

        liar.host.set_stream_handler(HOP, lie)
        hidden = await net.start([liar, good], hidden=True)
        await trio.sleep(10)
        assert set(hidden.nat.relays) == ({good.peer_id} if voucher else {liar.peer_id, good.peer_id})
        assert hidden.nat.client.relays == set(hidden.nat.relays)


async def test_whoever_wants_a_peer_without_reservation_is_told(autojump_clock):
    async with swarm() as net:
        relay, hidden, other = await trio_of(net)
        stranger = await net.start([relay], hidden=True, nat=NATSettings(relays=1, hole_punching=False))
        await stranger.turn_off()
        await trio.sleep(1)
        with pytest.raises(DialError, match="no reservation"):
            await other.host.connect(stranger_at(hidden, stranger))


def stranger_at(hidden: Peer, stranger: Peer) -> Multiaddr:
    return Multiaddr(str(hidden.circuits[0]).replace(hidden.peer_id.base58, stranger.peer_id.base58))


async def test_nothing_is_relayed_over_relayed_connections(autojump_clock):
    async with swarm() as net:
        relay, hidden, other = await trio_of(net)
        hidden.nat.service.start()
        await other.host.connect(hidden.circuits[0])
        answer = await hop(other, hidden, type=pb.HopMessage.RESERVE)
        assert answer.status == pb.PERMISSION_DENIED
        answer = await hop(other, hidden, type=pb.HopMessage.CONNECT, peer=pb.Peer(id=relay.peer_id.to_bytes()))
        assert answer.status == pb.PERMISSION_DENIED


async def test_garbage_is_answered_or_reset_and_hurts_nobody(autojump_clock):
    async with swarm() as net:
        relay, hidden, other = await trio_of(net)
        assert (await hop(other, relay, type=pb.HopMessage.STATUS)).status == pb.UNEXPECTED_MESSAGE
        answer = await hop(other, relay, type=pb.HopMessage.CONNECT, peer=pb.Peer(id=b"nobody"))
        assert answer.status == pb.MALFORMED_MESSAGE
        for garbage in (b"\xff" * 10, b"\x03\xff\xff\xff", b"\xff\xff\x03"):
            async with await other.host.open_stream(relay.peer_id, HOP) as stream:
                await stream.send_all(garbage)
                with pytest.raises(StreamError), trio.fail_after(30):
                    await stream.read_exactly(1)
        await other.host.connect(hidden.circuits[0])
        await call(other, hidden)


async def test_only_a_relay_that_was_asked_may_bring_circuits(autojump_clock):
    async with swarm() as net:
        _, hidden, other = await trio_of(net)
        await other.host.connect(hidden.circuits[0])
        stream = await other.host.open_stream(hidden.peer_id, STOP)
        wish = pb.StopMessage(type=pb.StopMessage.CONNECT, peer=pb.Peer(id=other.peer_id.to_bytes()))
        await messages.send(stream, wish)
        assert (await messages.receive(stream, pb.StopMessage)).status == pb.PERMISSION_DENIED


async def test_half_open_circuits_end_in_time(autojump_clock):
    async with swarm() as net:
        relay, hidden, other = await trio_of(net)
        hidden.host.set_stream_handler(STOP, say_nothing)
        began = trio.current_time()
        with pytest.raises(DialError, match=r"did not answer|does not answer|no answer"):
            await other.host.connect(hidden.circuits[0])
        assert trio.current_time() - began < 30
        await trio.sleep(30)
        assert relay.nat.service.book.circuits == 0


async def test_a_relay_that_dies_under_traffic_costs_the_calls_under_way_one_error_that_says_so(autojump_clock):
    async with swarm() as net:
        relays = [await net.start(relay=RelaySettings(serve="always")) for _ in range(2)]
        hidden = await net.start(relays, hidden=True, nat=NO_PUNCHING)
        other = await net.start(relays, hidden=True, nat=NO_PUNCHING)
        await other.host.connect(hidden.circuits[0])
        carrier = (await call(other, hidden)).relay
        failures: list[StreamError] = []

        async def talk_on() -> None:
            async with await other.host.open_stream(hidden.peer_id, ECHO) as stream:
                try:
                    while True:
                        await stream.send_all(bytes(1000))
                        await stream.read_exactly(1000)
                except StreamError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(talk_on)
            await trio.sleep(5)
            assert not failures
            died_at = trio.current_time()
            await next(relay for relay in relays if relay.peer_id == carrier).turn_off()
        assert len(failures) == 10
        assert all("relayed connection to" in str(failure) for failure in failures)
        with trio.fail_after(10):
            while True:
                try:
                    connection = await call(other, hidden)
                    break
                except (StreamError, DialError):
                    await trio.sleep(0.1)
        assert connection.relay not in (None, carrier)
        assert trio.current_time() - died_at < 10


async def test_a_flood_of_reservations_is_one_reservation(autojump_clock):
    async with swarm() as net:
        relay, hidden, other = await trio_of(net)
        answers: list[pb.HopMessage] = []

        async def ask() -> None:
            answers.append(await hop(other, relay, type=pb.HopMessage.RESERVE))

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(ask)
        assert len(answers) == 200
        assert "2 reservations" in repr(relay.nat)
        await other.host.connect(hidden.circuits[0])
        assert (await call(other, hidden)).relay == relay.peer_id
