"""The muxer under Trio: cancellation, fairness, slow and dead peers, the end of a connection."""

from __future__ import annotations

import array
import random
import struct

import pytest
import trio

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConnectionLost, StreamEnded, StreamReset
from hivemind_p2p.transport.yamux.receive_queue import ReceiveQueue
from hivemind_p2p.transport.yamux.stream import YamuxStream
from tests.transport.yamux.muxers import read_until_it_fails, two_muxers
from tests.transport.yamux.sessions import KIB, MIB


async def test_a_tensor_goes_through_as_it_is_and_into_its_place(autojump_clock):
    numbers = array.array("d", range(300_000))
    async with two_muxers() as pair:
        here, there = await pair.streams()
        target = array.array("d", bytes(8 * len(numbers)))
        pair.nursery.start_soon(here.send_all, memoryview(numbers))
        await there.read_into(memoryview(target))
        assert target == numbers


class Counting(ReceiveQueue):
    """Knows how much went through it."""

    def __init__(self) -> None:
        super().__init__()
        self.taken_in = 0

    def append(self, piece: memoryview) -> None:
        self.taken_in += len(piece)
        super().append(piece)


async def test_payload_is_decrypted_to_where_a_reader_waits_for_it(autojump_clock):
    data = random.Random(1).randbytes(2 * MIB)
    async with two_muxers() as pair:
        here, there = await pair.streams()
        there._queue = Counting()
        target = bytearray(len(data))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.read_into, memoryview(target))
            await trio.testing.wait_all_tasks_blocked()
            await here.send_all(data)
        assert target == data
        beside = there._queue.taken_in
        assert beside < 16 * KIB  # a small rest travels in one message with its header
        assert pair.other.session.windows.held == 0
        await here.send_all(data[: 100 * KIB])  # nobody waits: it is kept
        await trio.testing.wait_all_tasks_blocked()
        assert there._queue.taken_in == beside + 100 * KIB
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.read_into, memoryview(target)[: 300 * KIB])
            await trio.testing.wait_all_tasks_blocked()
            await here.send_all(data[100 * KIB : 300 * KIB + 10])
        assert target == data
        assert await there.read_exactly(10) == data[300 * KIB : 300 * KIB + 10]


async def test_a_reader_that_gave_up_has_its_buffer_for_itself(autojump_clock):
    data = random.Random(1).randbytes(MIB)
    async with two_muxers() as pair:
        here, there = await pair.streams()
        buffer = bytearray(200 * KIB)
        with trio.move_on_after(1) as scope:
            await here.send_all(data[: 70 * KIB])
            await there.read_into(memoryview(buffer))
        assert scope.cancelled_caught
        assert buffer == data[: 70 * KIB] + bytes(130 * KIB)
        await here.send_all(data[70 * KIB : 200 * KIB])
        assert await there.read_exactly(130 * KIB) == data[70 * KIB : 200 * KIB]
        assert buffer == data[: 70 * KIB] + bytes(130 * KIB)


async def test_a_bit_that_flips_on_its_way_to_a_buffer_is_noticed(autojump_clock):
    async with two_muxers() as pair:
        here, there = await pair.streams()
        await here.send_all(bytes(1000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_tampering, there)
            await trio.testing.wait_all_tasks_blocked()
            pair.other_end.flip = True
            await here.send_all(bytes(100 * KIB))
        assert pair.other.closed


async def expect_tampering(stream: YamuxStream) -> None:
    with pytest.raises(ConnectionLost, match="not what the peer sent"):
        await stream.read_into(memoryview(bytearray(101 * KIB)))


async def test_two_peers_with_much_to_say_do_not_block_each_other(autojump_clock):
    data = random.Random(1).randbytes(3 * MIB)
    async with two_muxers(latency=0.01) as pair:
        here, there = await pair.streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.send_all, data)
            nursery.start_soon(there.send_all, data[::-1])
            assert await there.read_exactly(len(data)) == data
            assert await here.read_exactly(len(data)) == data[::-1]


async def test_a_slow_reader_slows_only_its_own_stream(autojump_clock):
    async with two_muxers() as pair:
        slow, slow_there = await pair.streams()
        quick, quick_there = await pair.streams()
        pair.nursery.start_soon(slow.send_all, bytes(10 * MIB))
        for _ in range(100):
            await quick.send_all(bytes(10 * KIB))
            await quick_there.read_exactly(10 * KIB)
        assert pair.other.session.windows.held <= 256 * KIB
        assert len(await slow_there.receive_some()) > 0


async def test_writers_take_turns(autojump_clock):
    """Bandwidth is scarce: a frame takes a second. Whoever writes little does not wait for whoever writes much."""
    async with two_muxers(TransportSettings(write_timeout=1000)) as pair:
        send_all = pair.one_end.send_all

        async def slowly(data: bytes | bytearray | memoryview) -> None:
            await trio.sleep(len(data) / (256 * KIB))
            await send_all(data)

        pair.one_end.send_all = slowly
        streams = [await pair.streams() for _ in range(4)]
        finished = {}

        async def write(number: int, size: int) -> None:
            await streams[number][0].send_all(bytes(size))
            finished[number] = trio.current_time()

        async def read(number: int, size: int) -> None:
            await streams[number][1].read_exactly(size)

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number, size in enumerate((8 * MIB, 8 * MIB, 8 * MIB, 100)):
                nursery.start_soon(write, number, size)
                nursery.start_soon(read, number, size)
        assert finished[3] - start < 6
        assert min(finished[number] - start for number in range(3)) > 80


async def test_cancelling_whatever_waits_leaves_the_connection_usable(autojump_clock):
    async with two_muxers() as pair:
        here, there = await pair.streams()
        other_here, other_there = await pair.streams()

        async def read(buffer: bytearray) -> None:
            await there.read_into(memoryview(buffer))

        for wait in (
            lambda: here.send_all(bytes(10 * MIB)),  # for the window
            lambda: other_here.receive_some(),  # for data
            lambda: read(bytearray(20 * MIB)),
            lambda: pair.one.accept_stream(),
        ):
            with trio.move_on_after(1) as scope:
                await wait()
            assert scope.cancelled_caught
        await here.reset()
        await other_here.send_all(b"fine")
        assert await other_there.read_exactly(4) == b"fine"
        with pytest.raises(StreamReset):
            await read_until_it_fails(there)


@pytest.mark.parametrize("seed", range(8))
async def test_random_cancellations_never_break_a_connection(autojump_clock, seed):
    """Streams live and die at random while others carry data that must arrive whole; at the end nothing is left."""
    chance = random.Random(seed)
    settings = TransportSettings(max_streams_out=20, max_streams_in=20, max_unread=40 * MIB)
    async with two_muxers(settings, latency=0.001) as pair:

        async def serve(stream) -> None:
            try:
                [size] = struct.unpack("!I", await stream.read_exactly(4))
                received = await stream.read_exactly(size)
                await stream.send_all(received)
            except (StreamReset, StreamEnded):
                await stream.reset()
            else:
                await stream.aclose()

        async def accept(muxer) -> None:
            async with trio.open_nursery() as nursery:
                while True:
                    nursery.start_soon(serve, await muxer.accept_stream())

        async def call(muxer, whole: bool) -> None:
            data = chance.randbytes(chance.choice([0, 1, 1000, 300 * KIB, 2 * MIB]))
            await trio.sleep(chance.random() / 10)
            with trio.move_on_after(1000 if whole else chance.random() / 50):
                stream = await muxer.open_stream()
                try:
                    await stream.send_all(struct.pack("!I", len(data)))
                    await stream.send_all(data)
                    if chance.random() < 0.5:
                        await stream.send_eof()
                    assert await stream.read_exactly(len(data)) == data
                    if chance.random() < 0.5:
                        await stream.aclose()
                finally:
                    await stream.reset()

        for muxer in (pair.one, pair.other):
            pair.nursery.start_soon(accept, muxer)
        async with trio.open_nursery() as calls:
            for number in range(80):
                calls.start_soon(call, chance.choice([pair.one, pair.other]), number % 3 == 0)
        await trio.sleep(1)
        for muxer in (pair.one, pair.other):
            assert not muxer.closed
            assert muxer.stream_count == len(muxer.session) == 0
            assert muxer.session.windows.held == muxer.session.windows.granted == 0
            assert muxer._outbound == 0


async def test_a_peer_that_takes_nothing_is_given_up(autojump_clock):
    async with two_muxers(TransportSettings(keepalive_interval=1e6, write_timeout=5)) as pair:
        streams = [await pair.streams() for _ in range(3)]
        pair.other_end.deaf = True
        start = trio.current_time()

        async def write_for_ever(stream) -> None:
            while True:
                await stream.send_all(bytes(KIB))

        async def write(stream) -> None:
            with pytest.raises(ConnectionLost, match="took no byte for 5 s"):
                await write_for_ever(stream)

        async with trio.open_nursery() as nursery:
            for here, _ in streams:
                nursery.start_soon(write, here)
        assert trio.current_time() - start == pytest.approx(5, abs=0.1)


async def test_a_living_connection_is_kept(autojump_clock):
    async with two_muxers() as pair:
        here, there = await pair.streams()
        await trio.sleep(3600)
        await there.send_all(b"x")
        assert await here.read_exactly(1) == b"x"


async def test_closing_says_goodbye_and_ends_both_sides(autojump_clock):
    async with two_muxers() as pair:
        here, there = await pair.streams()
        await there.send_all(b"last words")
        await pair.other.aclose()
        assert await here.read_exactly(10) == b"last words"
        with pytest.raises(ConnectionLost, match="closed"):
            await here.receive_some()
        with pytest.raises(ConnectionLost):
            await there.send_all(b"x")
        assert pair.one.closed
        assert repr(pair.one) == f"<YamuxMuxer to {pair.one.peer_id!r}, closed>"
        await pair.other.aclose()


async def test_a_run_that_is_cancelled_wakes_those_who_wait(autojump_clock):
    async with two_muxers() as pair:
        here, _ = await pair.streams()

        async def wait() -> None:
            with pytest.raises(ConnectionLost):
                await here.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            pair.nursery.cancel_scope.cancel()
            nursery.cancel_scope.shield = True


async def test_a_bit_that_flips_on_the_wire_ends_the_connection(autojump_clock):
    async with two_muxers() as pair:
        here, there = await pair.streams()
        pair.other_end.flip = True
        await here.send_all(b"x")
        with pytest.raises(ConnectionLost, match="not what the peer sent"):
            await there.receive_some()
        with pytest.raises(ConnectionLost, match="the peer closed it"):
            await here.receive_some()


async def test_misuse_is_named(autojump_clock):
    async with two_muxers() as pair:
        here, there = await pair.streams()
        with pytest.raises(ValueError, match="at least 1"):
            await here.receive_some(0)
        await here.send_all(b"")
        await here.wait_send_all_might_not_block()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.send_all, bytes(MIB))
            await trio.testing.wait_all_tasks_blocked()
            for use in (here.send_all(b"x"), here.send_eof(), here.wait_send_all_might_not_block()):
                with pytest.raises(trio.BusyResourceError):
                    await use
            await there.read_exactly(MIB)
        assert repr(here).startswith("<Stream 1, no protocol yet, to <PeerID ")
        await here.aclose()
        await here.aclose()
        assert repr(here).endswith(", closed>")
        with pytest.raises(trio.ClosedResourceError):
            await here.receive_some()


async def test_a_stream_closed_under_its_writer_wakes_it(autojump_clock):
    async with two_muxers() as pair:
        here, _ = await pair.streams()

        async def write() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await here.send_all(bytes(MIB))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            await here.reset()


async def test_a_stream_opened_and_closed_in_silence_is_never_heard_of(autojump_clock):
    async with two_muxers() as pair:
        stream = await pair.one.open_stream()
        await stream.aclose()
        await pair.streams()
        assert pair.other.stream_count == 1
