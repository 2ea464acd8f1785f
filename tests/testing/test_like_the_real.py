"""A network in memory does what a real host does: every test here runs on both."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p.errors import ConnectionLost, DialError, ProtocolNotSupported, StreamEnded, StreamReset
from hivemind_p2p.transport.api import Network, Stream
from tests.testing.conftest import LATENCY

TEST = "/test/1.0.0"
Pair = tuple[Network, Network]


async def meet(networks: Pair) -> tuple[Stream, Stream, trio.Event]:
    """Both ends of a new stream; the other's handler returns once the event is set."""
    one, other = networks
    send, receive = trio.open_memory_channel[Stream](1)
    done = trio.Event()

    async def handler(stream: Stream) -> None:
        await send.send(stream)
        await done.wait()

    other.set_stream_handler(TEST, handler)
    ours = await one.open_stream(other.peer_id, TEST)
    return ours, await receive.receive(), done


async def read_all(stream: Stream) -> bytes:
    heard = b""
    while data := await stream.receive_some():
        heard += data
    return heard


async def test_bytes_go_both_ways(autojump_clock, networks: Pair):
    ours, theirs, _ = await meet(networks)
    data = bytes(range(256)) * 20_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_all, data)
        nursery.start_soon(theirs.send_all, data[::-1])
        assert await theirs.read_exactly(len(data)) == data
        buffer = bytearray(len(data))
        await ours.read_into(memoryview(buffer))
        assert buffer == data[::-1]
    assert (ours.protocol, theirs.protocol) == (TEST, TEST)
    assert (ours.peer_id, theirs.peer_id) == (networks[1].peer_id, networks[0].peer_id)


async def test_opening_that_is_cancelled_leaves_no_stream(autojump_clock, networks: Pair):
    one, other = networks
    await meet(networks)  # from now on nobody waits for a word on the protocol
    [connection] = one.connections(other.peer_id)
    await trio.sleep(1)  # hosts get to know each other meanwhile
    before = repr(connection)
    with trio.CancelScope() as scope:
        scope.cancel()
        await one.open_stream(other.peer_id, TEST)
    assert scope.cancelled_caught
    assert repr(connection) == before


async def test_a_small_read_takes_no_more_than_it_wants(autojump_clock, networks: Pair):
    ours, theirs, _ = await meet(networks)
    await ours.send_all(b"abc")
    await ours.send_eof()
    assert [await theirs.receive_some(2) for _ in range(2)] == [b"ab", b"c"]
    assert [await theirs.receive_some(2) for _ in range(2)] == [b"", b""]
    with pytest.raises(ValueError, match="max_bytes"):
        await theirs.receive_some(0)


async def test_each_half_ends_on_its_own(autojump_clock, networks: Pair):
    ours, theirs, _ = await meet(networks)
    await ours.send_all(b"all that I say")
    await ours.send_eof()
    await ours.send_eof()
    assert await read_all(theirs) == b"all that I say"
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"more")
    await theirs.send_all(b"and I")
    assert await ours.read_exactly(5) == b"and I"
    await theirs.send_eof()
    assert await ours.receive_some() == b""


async def test_reading_past_the_end_says_how_far_it_came(autojump_clock, networks: Pair):
    ours, theirs, _ = await meet(networks)
    await ours.send_all(b"four")
    await ours.send_eof()
    with pytest.raises(StreamEnded, match="4 bytes into an expected 10"):
        await theirs.read_exactly(10)


async def test_a_reset_fails_reads_and_writes_of_the_other_end(autojump_clock, networks: Pair):
    ours, theirs, _ = await meet(networks)
    await ours.send_all(b"said before")
    await trio.sleep(1)
    await ours.reset()
    await trio.sleep(1)
    assert await theirs.receive_some() == b"said before"
    with pytest.raises(StreamReset):
        await theirs.receive_some()
    with pytest.raises(StreamReset):
        await theirs.send_all(b"x")
    for use in (ours.send_all(b"x"), ours.receive_some(), ours.send_eof()):
        with pytest.raises(trio.ClosedResourceError):
            await use


async def test_a_reset_wakes_who_waits(autojump_clock, networks: Pair):
    ours, theirs, _ = await meet(networks)
    quiet, _, _ = await meet(networks)
    failed = []

    async def expect(kind: type[Exception], use) -> None:
        with pytest.raises(kind):
            await use
        failed.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, StreamReset, theirs.receive_some())
        nursery.start_soon(expect, StreamReset, theirs.send_all(bytes(2**25)))
        nursery.start_soon(expect, trio.ClosedResourceError, quiet.receive_some())
        await trio.sleep(50)
        before = trio.current_time()
        await ours.reset()
        await quiet.reset()
    assert [round(when - before, 3) for when in sorted(failed)] == [0.0, LATENCY, LATENCY]


async def test_what_was_written_can_be_read_after_a_close_and_no_more_is_taken(autojump_clock, networks: Pair):
    ours, theirs, _ = await meet(networks)
    await ours.send_all(b"x" * 100_000)
    await ours.aclose()
    await ours.aclose()
    await trio.sleep(1)
    assert await read_all(theirs) == b"x" * 100_000
    with pytest.raises(StreamReset):
        await theirs.send_all(bytes(2**20))


async def test_a_handler_that_returns_closes_and_one_that_raises_resets(autojump_clock, networks: Pair, caplog):
    ours, _, done = await meet(networks)
    done.set()
    assert await ours.receive_some() == b""

    async def broken(stream: Stream) -> None:
        raise ZeroDivisionError("a bug of the application")

    networks[1].set_stream_handler("/broken", broken)
    stream = await networks[0].open_stream(networks[1].peer_id, "/broken")
    with pytest.raises(StreamReset):
        await stream.receive_some()
    assert [record.levelno for record in caplog.records if "/broken" in record.getMessage()] == [logging.ERROR]


async def test_a_writer_waits_for_its_reader(autojump_clock, networks: Pair):
    ours, theirs, _ = await meet(networks)
    written = 0

    async def write() -> None:
        nonlocal written
        for _ in range(64):
            await ours.send_all(bytes(2**18))
            written += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.sleep(10)
        assert written in (0, 1)  # 256 KiB: the window of a stream that nobody reads
        with trio.move_on_after(1) as waiting, pytest.raises(trio.BusyResourceError):
            await ours.wait_send_all_might_not_block()
        assert not waiting.cancelled_caught
        await theirs.read_exactly(2**24)
    await ours.wait_send_all_might_not_block()


async def test_two_readers_or_two_writers_are_one_too_many(autojump_clock, networks: Pair):
    ours, _, _ = await meet(networks)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.receive_some)
        nursery.start_soon(ours.send_all, bytes(2**25))
        await trio.sleep(1)
        for use in (ours.receive_some(), ours.send_all(b"x"), ours.send_eof()):
            with pytest.raises(trio.BusyResourceError):
                await use
        nursery.cancel_scope.cancel()


async def test_a_read_that_was_cancelled_loses_nothing(autojump_clock, networks: Pair):
    ours, theirs, _ = await meet(networks)
    with trio.move_on_after(1):
        await theirs.receive_some()
    await ours.send_all(b"hello")
    assert await theirs.read_exactly(5) == b"hello"


async def ask(one: Network, other: Network) -> None:
    stream = await one.open_stream(other.peer_id, TEST)
    await stream.receive_some()  # a host that knows the protocol from before hears of the refusal here


async def test_an_unknown_protocol_is_refused_by_name(autojump_clock, networks: Pair):
    one, other = networks
    with pytest.raises(ProtocolNotSupported, match="/nobody/speaks/this"):
        await one.open_stream(other.peer_id, "/nobody/speaks/this")
    await meet(networks)
    other.set_stream_handler(TEST, None)
    with pytest.raises(ProtocolNotSupported, match=TEST):
        await ask(one, other)


async def test_connections_are_shared_and_seen_by_both(autojump_clock, networks: Pair):
    one, other = networks
    assert await one.connect(other.visible_maddrs[0]) == other.peer_id
    for _ in range(3):
        await meet(networks)
    [ours], [theirs] = one.connections(), other.connections(one.peer_id)
    assert (ours.outbound, theirs.outbound) == (True, False)
    assert (ours.peer_id, theirs.peer_id) == (other.peer_id, one.peer_id)
    assert str(ours.remote_maddr) == str(other.visible_maddrs[0]).partition("/p2p/")[0]
    assert repr(ours).startswith("<Connection to ")
    await meet((other, one))  # the other way, on the same connection
    assert len(one.connections()) == 1


async def test_closing_a_connection_ends_its_streams_on_both_sides(autojump_clock, networks: Pair):
    ours, theirs, _ = await meet(networks)
    await ours.send_all(b"farewell")
    await networks[0].connections()[0].aclose()
    with pytest.raises((ConnectionLost, trio.ClosedResourceError)):
        await ours.receive_some()
    assert await theirs.read_exactly(8) == b"farewell"
    with pytest.raises((ConnectionLost, trio.ClosedResourceError)):  # closed, once its handler was cancelled
        await theirs.receive_some()
    await trio.sleep(1)
    assert networks[0].connections() == networks[1].connections() == []
    await meet(networks)  # a new one


async def test_a_handler_is_cancelled_when_its_connection_is_gone(autojump_clock, networks: Pair):
    one, other = networks
    cancelled = trio.Event()

    async def handler(stream: Stream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    other.set_stream_handler(TEST, handler)
    await one.open_stream(other.peer_id, TEST)
    await one.connections()[0].aclose()
    await cancelled.wait()


async def test_nobody_there(autojump_clock, networks: Pair):
    one, other = networks
    nowhere = Multiaddr(f"/ip4/10.0.0.9/tcp/1/p2p/{one.peer_id}")
    with pytest.raises(DialError, match="refused"):
        await other.connect(nowhere)
    wrong = Multiaddr(str(other.visible_maddrs[0]).partition("/p2p/")[0] + f"/p2p/{one.peer_id}")
    with pytest.raises(DialError):
        await one.connect(wrong)
    stranger = type(other.peer_id)(other.peer_id.to_bytes()[:-1] + b"\x77")
    with pytest.raises(DialError, match="none of its addresses is known"):
        await one.open_stream(stranger, TEST)
    somebody_else = Multiaddr(str(other.visible_maddrs[0]).partition("/p2p/")[0] + f"/p2p/{stranger}")
    with pytest.raises(DialError, match="somebody else"):
        await one.connect(somebody_else)


async def test_who_dials_at_once_ends_with_one_connection(autojump_clock, networks: Pair):
    one, other = networks
    other.add_addresses(one.peer_id, one.visible_maddrs)
    one.set_stream_handler(TEST, trio.abc.AsyncResource.aclose)
    other.set_stream_handler(TEST, trio.abc.AsyncResource.aclose)
    async with trio.open_nursery() as nursery:
        for here, there in [(one, other), (other, one)] * 5:
            nursery.start_soon(here.open_stream, there.peer_id, TEST)
    assert one.connections()[0].outbound != other.connections()[0].outbound
    assert len(one.connections()) <= 2


async def test_a_resolver_finds_addresses(autojump_clock, networks: Pair):
    one, other = networks
    asked = []

    async def resolve(peer_id):
        asked.append(peer_id)
        return [Multiaddr(str(one.visible_maddrs[0]).partition("/p2p/")[0])]

    other.set_peer_resolver(resolve)
    await meet((other, one))
    assert asked == [one.peer_id]


async def test_a_connection_counts_what_it_has_carried(networks: Pair):
    ours, theirs, done = await meet(networks)
    one, other = (network.connections()[0] for network in networks)
    before, size = [one.traffic, other.traffic], 300_000

    async def send() -> None:
        await ours.send_all(bytes(size))
        await ours.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert len(await read_all(theirs)) == size
    assert one.traffic.sent - before[0].sent >= size
    assert size <= other.traffic.received - before[1].received < 1.01 * size
    assert one.traffic.received - before[0].received < size / 10
    done.set()


async def test_who_wants_to_know_is_told_once_that_there_is_something_to_read(autojump_clock, networks: Pair):
    ours, theirs, _ = await meet(networks)
    told: list[str] = []
    theirs.when_readable(lambda: told.append("replaced"))
    theirs.when_readable(lambda: told.append("came"))
    await trio.sleep(1)
    assert told == []
    await ours.send_all(b"abc")
    await trio.sleep(1)
    await ours.send_all(b"def")
    await trio.sleep(1)
    assert told == ["came"]
    theirs.when_readable(lambda: told.append("is here"))
    assert told == ["came", "is here"]
    assert await theirs.read_exactly(6) == b"abcdef"
    theirs.when_readable(lambda: told.append("nobody"))
    theirs.when_readable(None)
    await ours.send_all(b"x")
    assert await theirs.read_exactly(1) == b"x"
    for number, end in enumerate((ours.send_eof, ours.reset)):
        theirs.when_readable(partial(told.append, f"end {number}"))
        await end()
        await trio.sleep(1)
        assert told.pop() == f"end {number}"


async def test_who_closes_is_not_told_any_more(autojump_clock, networks: Pair):
    ours, theirs, _ = await meet(networks)
    theirs.when_readable(lambda: pytest.fail("told of a stream that was closed"))
    theirs.close()
    theirs.close()
    assert await read_all(ours) == b""
    await trio.sleep(1)
