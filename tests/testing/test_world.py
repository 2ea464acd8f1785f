"""What a world does to its peers: distance, loss, partitions, death; the same in every run."""

from __future__ import annotations

import pytest
import trio

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConnectionLost, DialError, NodeClosed, StreamReset
from hivemind_p2p.testing import MemoryNetwork, World
from hivemind_p2p.transport.api import Stream

ECHO = "/echo/1.0.0"


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


def meet(*networks: MemoryNetwork) -> None:
    """Everybody echoes, and knows everybody's address."""
    for one in networks:
        one.set_stream_handler(ECHO, echo)
        for other in networks:
            one.add_addresses(other.peer_id, other.visible_maddrs)


async def roundtrip(one: MemoryNetwork, other: MemoryNetwork) -> float:
    """Echo something on a new stream; seconds from the first byte sent to the last received."""
    stream = await one.open_stream(other.peer_id, ECHO)
    before = trio.current_time()
    await stream.send_all(b"ping")
    assert await stream.read_exactly(4) == b"ping"
    await stream.aclose()
    return trio.current_time() - before


async def test_everything_takes_its_time(autojump_clock):
    world = World(latency=0.05)
    async with world.network() as one, world.network() as other:
        meet(one, other)
        assert await one.connect(other.visible_maddrs[0]) == other.peer_id
        assert trio.current_time() == pytest.approx(0.1)
        await (await one.open_stream(other.peer_id, ECHO)).aclose()
        assert trio.current_time() == pytest.approx(0.2)
        assert await roundtrip(one, other) == pytest.approx(0.1)


async def test_jitter_and_loss_make_late_and_keep_the_order(autojump_clock):
    world = World(latency=0.05, jitter=0.1, loss=0.2, retransmit_after=0.3, seed=7)
    async with world.network() as one, world.network() as other:
        meet(one, other)
        times = [await roundtrip(one, other) for _ in range(50)]
        assert min(times) >= 0.1
        assert sum(time <= 0.3 for time in times) >= 20  # nothing was lost
        assert 0.4 <= max(times) < 5
        stream = await one.open_stream(other.peer_id, ECHO)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                for number in range(200):
                    await stream.send_all(bytes([number]))
                await stream.send_eof()

            assert await stream.read_exactly(200) == bytes(range(200))


def test_a_seed_makes_the_same_world():
    def times(seed: int) -> list[float]:
        async def main() -> list[float]:
            world = World(jitter=0.1, loss=0.1, seed=seed)
            async with world.network() as one, world.network() as other:
                meet(one, other)
                return [await roundtrip(one, other) for _ in range(10)]

        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    assert times(1) == times(1) != times(2)


async def test_the_dead_say_nothing_and_are_noticed_in_the_end(autojump_clock):
    world = World(settings=TransportSettings(keepalive_interval=20, keepalive_timeout=10, dial_timeout=5))
    async with world.network() as one, world.network() as other:
        meet(one, other)
        stream = await one.open_stream(other.peer_id, ECHO)
        world.kill(other)
        before = trio.current_time()
        await stream.send_all(b"anybody there?")
        with pytest.raises(ConnectionLost):
            await stream.receive_some()
        assert trio.current_time() - before == pytest.approx(30)
        before = trio.current_time()
        with pytest.raises(DialError, match="no answer within 5 s"):
            await one.open_stream(other.peer_id, ECHO)
        assert trio.current_time() - before == pytest.approx(5)
        with pytest.raises(DialError, match="no answer within 5 s"):
            await other.open_stream(one.peer_id, ECHO)
        assert repr(world) == "<World of 2 peers, 1 dead, 0 parts>"


async def test_a_short_partition_only_delays(autojump_clock):
    world = World()
    async with world.network() as one, world.network() as other, world.network() as third:
        meet(one, other, third)
        stream = await one.open_stream(other.peer_id, ECHO)
        world.partition([one, third], [other])
        await stream.send_all(b"ping")
        assert await roundtrip(one, third) < 1
        with pytest.raises(StreamReset, match="did not answer"):
            await other.open_stream(one.peer_id, ECHO)
        with trio.move_on_after(5) as waiting:
            await stream.receive_some()
        assert waiting.cancelled_caught
        world.heal()
        before = trio.current_time()
        assert await stream.read_exactly(4) == b"ping"
        assert trio.current_time() - before < 1
        assert await roundtrip(other, one) < 1


async def test_a_long_partition_ends_connections_and_is_forgotten(autojump_clock):
    world = World()
    async with world.network() as one, world.network() as other:
        meet(one, other)
        stream = await one.open_stream(other.peer_id, ECHO)
        world.partition([one])
        await trio.sleep(100)
        with pytest.raises(ConnectionLost):
            await stream.send_all(b"x")
        assert one.connections() == other.connections() == []
        world.heal()
        assert await roundtrip(other, one) < 1


async def test_who_leaves_says_goodbye(autojump_clock):
    world = World(latency=0.05)
    async with world.network() as one:
        async with world.network() as other:
            meet(one, other)
            stream = await one.open_stream(other.peer_id, ECHO)
        assert len(one.connections()) == 1
        await trio.sleep(0.06)
        assert one.connections() == []
        with pytest.raises(ConnectionLost):
            await stream.receive_some()
        with pytest.raises(DialError, match="refused"):
            await one.open_stream(other.peer_id, ECHO)
        with pytest.raises(NodeClosed, match="async with"):
            await other.open_stream(one.peer_id, ECHO)
        with pytest.raises(NodeClosed, match="started before"):
            await other.__aenter__()


async def test_who_does_not_listen_is_not_dialled(autojump_clock):
    world = World()
    async with world.network() as one, world.network(listen=False) as client:
        meet(one, client)
        assert client.visible_maddrs == []
        with pytest.raises(DialError, match="none of its addresses is known"):
            await one.open_stream(client.peer_id, ECHO)
        await roundtrip(client, one)
        await roundtrip(one, client)  # on the connection that the client made


async def test_forgetting(autojump_clock):
    world = World()
    async with world.network() as one, world.network() as other, world.network() as third:
        meet(one, other, third)
        await roundtrip(one, other)
        await roundtrip(one, third)
        one.forget(other.peer_id)
        assert [connection.peer_id for connection in one.connections()] == [third.peer_id]
        assert (len(one.addresses(other.peer_id)), len(one.addresses(third.peer_id))) == (0, 1)
        one.forget()
        assert one.connections() == one.addresses(third.peer_id) == []
        assert repr(one).endswith("at /ip4/10.0.0.1/tcp/1, 0 connections>")
        await roundtrip(third, one)


async def test_an_error_in_the_block_is_not_wrapped():
    with pytest.raises(KeyError):
        async with World().network():
            raise KeyError("mine")
