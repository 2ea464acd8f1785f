"""Relays that carry little: what is too large for them waits for a direct connection, and small calls go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from hivemind_p2p.config import NATSettings, RelaySettings
from hivemind_p2p.errors import ProtocolNotSupported, RelayLimited, StreamError
from hivemind_p2p.rpc import RPC
from hivemind_p2p.wire import circuit_pb2 as pb
from hivemind_p2p.wire import runtime_pb2
from hivemind_p2p.wire.peer_id import PeerID
from tests.nat.memory import Peer, Swarm, swarm
from tests.transport.hosts import ECHO, until

LIMIT = 100_000
NO_PUNCHING = NATSettings(hole_punching=False)


async def limited_pair(
    net: Swarm, nat: NATSettings | None, says: Callable[[], pb.Limit | None] | None = None, **limits: float
) -> tuple[Peer, Peer, Peer]:
    """Two hidden peers, connected through a relay with limits, and the relay.

    Args:
        says: the limits that the relay tells, if they are not the true ones.
    """
    settings = RelaySettings(**{"circuit_bytes": LIMIT, "circuit_time": 0, **limits})
    relay = await net.start(relay=settings)
    if says is not None:
        relay.nat.service._limit = says
    hidden = await net.start([relay], hidden=True, nat=nat)
    other = await net.start([relay], hidden=True, nat=nat)
    await other.host.connect(hidden.circuits[0])
    return other, hidden, relay


async def carry(source: Peer, target: Peer, size: int) -> PeerID | None:
    """Send so much and get it back; the relay that it went through."""
    async with await source.host.open_stream(target.peer_id, ECHO, carries=size) as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(size))
            assert await stream.read_exactly(size) == bytes(size)
        assert stream.connection is not None
        return stream.connection.relay


async def test_a_stream_that_was_not_opened_takes_no_room(autojump_clock):
    async with swarm() as net:
        other, hidden, _ = await limited_pair(net, NO_PUNCHING)
        [circuit] = other.host.connections(hidden.peer_id)
        before = circuit.room
        with pytest.raises(ProtocolNotSupported):
            await other.host.open_stream(hidden.peer_id, "/nobody/1", carries=LIMIT // 2)
        with trio.move_on_after(0.001):
            await other.host.open_stream(hidden.peer_id, "/nobody/1", carries=LIMIT // 2)
        assert circuit.room > before - LIMIT // 10


async def test_what_no_circuit_carries_is_refused_in_words_and_small_calls_go_on(autojump_clock):
    async with swarm() as net:
        other, hidden, relay = await limited_pair(net, NO_PUNCHING)
        [circuit] = other.host.connections(hidden.peer_id)
        async with trio.open_nursery() as nursery:

            async def too_much() -> None:
                began = trio.current_time()
                with pytest.raises(
                    RelayLimited, match=r"carries 100000 bytes.*no direct connection came in"
                ) as failure:
                    await carry(other, hidden, 2 * LIMIT)
                assert trio.current_time() - began == pytest.approx(20)
                assert (failure.value.relay, failure.value.size) == (relay.peer_id.base58, LIMIT)

            nursery.start_soon(too_much)
            for _ in range(10):
                await trio.sleep(1)
                assert await carry(other, hidden, 100) == relay.peer_id
        assert other.host.connections(hidden.peer_id) == [circuit], "it was not cut"


async def test_a_caller_who_waits_for_less_is_told_in_his_time(autojump_clock):
    async with swarm() as net:
        other, hidden, _ = await limited_pair(net, NO_PUNCHING)
        async with RPC(other.host) as caller, RPC(hidden.host) as callee:
            callee.register("Test.size", runtime_pb2.Tensor, lambda tensor, _: runtime_pb2.Tensor(size=[1]))
            began = trio.current_time()
            large = runtime_pb2.Tensor(buffer=bytes(2 * LIMIT))
            with pytest.raises(RelayLimited):
                await caller.call(hidden.peer_id, "Test.size", large, runtime_pb2.Tensor, timeout=3)
            assert trio.current_time() - began < 3
            small = runtime_pb2.Tensor()
            with pytest.raises(RelayLimited):
                await caller.call(hidden.peer_id, "Test.size", small, runtime_pb2.Tensor, timeout=3, carries=2 * LIMIT)
            assert (await caller.call(hidden.peer_id, "Test.size", small, runtime_pb2.Tensor)).size == [1]


async def test_a_relay_that_hides_its_limits_costs_one_error_that_says_so(autojump_clock):
    async with swarm() as net:
        other, hidden, relay = await limited_pair(net, NO_PUNCHING, says=lambda: None)
        with pytest.RaisesGroup(pytest.RaisesExc(StreamError, match="the relayed connection to .* is gone")):
            await carry(other, hidden, 2 * LIMIT)
        assert await carry(other, hidden, 100) == relay.peer_id


async def test_a_relay_that_says_that_it_carries_nothing_still_carries_small_calls(autojump_clock):
    async with swarm() as net:
        other, hidden, relay = await limited_pair(net, NO_PUNCHING, says=lambda: pb.Limit(duration=1, data=1))
        began = trio.current_time()
        for _ in range(10):
            assert await carry(other, hidden, 1000) == relay.peer_id
        assert trio.current_time() - began < 5
        assert relay.nat.service.book.circuits == 1
        with pytest.raises(RelayLimited, match="carries 1 bytes"):
            await carry(other, hidden, LIMIT)


async def test_what_is_too_large_goes_over_the_direct_connection_once_there_is_one(autojump_clock):
    async with swarm() as net:
        other, hidden, _ = await limited_pair(net, NATSettings(punch_window=1))

        async def open_up() -> None:
            await trio.sleep(8)
            net.wire.silent.discard(other.ip)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_up)
            assert await carry(other, hidden, 10 * LIMIT) is None


async def test_a_circuit_that_is_used_up_is_replaced_before_it_is_cut(autojump_clock):
    async with swarm() as net:
        other, hidden, relay = await limited_pair(net, NO_PUNCHING)
        for _ in range(60):
            assert await carry(other, hidden, LIMIT // 10) == relay.peer_id
        await trio.sleep(20)
        assert relay.nat.service.book.circuits == 1, "those that were replaced are closed"


async def test_calls_at_once_do_not_fill_a_circuit_above_its_limit(autojump_clock):
    async with swarm() as net:
        other, hidden, relay = await limited_pair(net, NO_PUNCHING)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(carry, other, hidden, LIMIT // 3)
        assert relay.nat.service.book.circuits > 2


async def test_nothing_is_begun_in_the_last_seconds_of_a_circuit(autojump_clock):
    async with swarm() as net:
        other, hidden, relay = await limited_pair(net, NO_PUNCHING, circuit_time=60)
        [first] = other.host.connections(hidden.peer_id)
        await trio.sleep(57)
        assert await carry(other, hidden, 100) == relay.peer_id
        assert other.host.connections(hidden.peer_id)[0] is not first
        await first.ended.wait()
        await carry(other, hidden, 100)


async def test_when_no_other_circuit_can_be_had_the_old_one_is_used_as_long_as_it_lasts(autojump_clock):
    async with swarm() as net:
        other, hidden, relay = await limited_pair(net, NO_PUNCHING, max_circuits_per_peer=1)
        assert await carry(other, hidden, LIMIT // 2) == relay.peer_id
        await until(lambda: other.host.connections(hidden.peer_id)[0].idle)
        assert await carry(other, hidden, LIMIT // 2 - 8000) == relay.peer_id
