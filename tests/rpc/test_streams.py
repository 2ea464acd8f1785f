"""Streaming calls: order, ends, errors of either side, giving up, and who has to wait for whom."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue, Int32Value

from hivemind_p2p.errors import (
    DeadlineExceeded,
    ExpertFailed,
    MessageTooLarge,
    ProtocolNotSupported,
    RemoteError,
    StreamError,
)
from hivemind_p2p.rpc import streaming
from hivemind_p2p.wire import calls

METHOD = "Test.rpc_stream"


async def numbers(stop: int, gap: float = 0.0):
    for number in range(stop):
        yield Int32Value(value=number)
        await trio.sleep(gap)


async def double(requests, context):
    async for request in requests:
        yield Int32Value(value=2 * request.value)


def stream(pair, requests, response_type=Int32Value, **options):
    caller, callee = pair
    return caller.stream_call(callee.network.peer_id, METHOD, requests, response_type, **options)


async def values(responses) -> list[int]:
    return [response.value async for response in responses]


@pytest.mark.parametrize("count", [0, 1, 1000])
async def test_every_item_in_order(autojump_clock, pair, count):
    pair[1].register_stream(METHOD, Int32Value, double)
    async with stream(pair, numbers(count)) as responses:
        assert await values(responses) == [2 * number for number in range(count)]
        assert await values(responses) == []


async def test_items_flow_both_ways_at_once(autojump_clock, pair):
    pair[1].register_stream(METHOD, Int32Value, double)
    send, receive = trio.open_memory_channel[Int32Value](0)
    async with stream(pair, receive) as responses, send:
        for number in range(3):
            await send.send(Int32Value(value=number))
            assert (await anext(responses)).value == 2 * number


async def test_one_item_in_many_out_and_many_in_one_out(autojump_clock, pair):
    async def count_to(requests, context):
        async for request in requests:
            for number in range(request.value):
                yield Int32Value(value=number)

    async def add_up(requests, context):
        yield Int32Value(value=sum([request.value async for request in requests]))

    pair[1].register_stream(METHOD, Int32Value, count_to)
    async with stream(pair, numbers(4)) as responses:
        assert await values(responses) == [0, 0, 1, 0, 1, 2]
    pair[1].unregister(METHOD)
    pair[1].register_stream(METHOD, Int32Value, add_up)
    async with stream(pair, numbers(5)) as responses:
        assert await values(responses) == [10]


async def test_a_handler_may_end_before_its_caller(autojump_clock, pair):
    async def first(requests, context):
        yield await anext(requests)

    pair[1].register_stream(METHOD, Int32Value, first)
    async with stream(pair, numbers(10**6)) as responses:
        assert await values(responses) == [0]


async def test_a_handlers_error_comes_behind_its_responses(autojump_clock, pair):
    async def fail(requests, context):
        yield Int32Value(value=7)
        raise ExpertFailed("the expert divided by zero")

    pair[1].register_stream(METHOD, Int32Value, fail)
    async with stream(pair, numbers(10**6)) as responses:
        assert (await anext(responses)).value == 7
        with pytest.raises(ExpertFailed, match="divided by zero") as caught:
            await anext(responses)
    assert isinstance(caught.value, RemoteError)


async def test_an_error_before_the_first_response(autojump_clock, pair):
    def not_even_a_generator(requests, context):
        raise RuntimeError("broken from the start")

    pair[1].register_stream(METHOD, Int32Value, not_even_a_generator)
    async with stream(pair, numbers(1)) as responses:
        with pytest.raises(RemoteError, match="RuntimeError: broken from the start"):
            await anext(responses)


async def test_what_the_requests_raise_is_raised_by_the_responses(autojump_clock, pair):
    heard = trio.Event()

    async def wait(requests, context):
        try:
            async for request in requests:
                yield request
        finally:
            heard.set()

    async def broken():
        yield Int32Value(value=1)
        raise KeyError("no such row")

    pair[1].register_stream(METHOD, Int32Value, wait)
    with pytest.raises(KeyError, match="no such row"):  # and not a group
        async with stream(pair, broken()) as responses:
            await values(responses)
    await heard.wait()


async def test_an_error_in_the_block_passes_as_it_is_and_cancels_the_handler(autojump_clock, pair):
    cancelled = trio.Event()

    async def endless(requests, context):
        try:
            while True:
                yield Int32Value()
        finally:
            cancelled.set()

    pair[1].register_stream(METHOD, Int32Value, endless)
    with pytest.raises(ZeroDivisionError):
        async with stream(pair, numbers(1)) as responses:
            (await anext(responses)).value // 0
    await cancelled.wait()


async def test_leaving_the_block_cancels_the_handler_and_closes_the_requests(autojump_clock, pair):
    cancelled, closed = trio.Event(), trio.Event()

    async def wait(requests, context):
        try:
            yield await anext(requests)
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def endless():
        try:
            while True:
                yield Int32Value()
                await trio.sleep(1)
        finally:
            closed.set()

    pair[1].register_stream(METHOD, Int32Value, wait)
    async with stream(pair, endless()) as responses:
        await anext(responses)
    assert closed.is_set()
    await cancelled.wait()


async def test_the_deadline_bounds_the_whole_block(autojump_clock, pair):
    pair[1].register_stream(METHOD, Int32Value, double)
    with pytest.raises(DeadlineExceeded, match="within 10 s"):
        async with stream(pair, numbers(100, gap=1.0), timeout=10) as responses:
            assert (await values(responses)) is None  # never gets so far


async def test_what_is_not_served(autojump_clock, pair):
    with pytest.raises(ProtocolNotSupported):
        async with stream(pair, numbers(1)):
            pass


async def test_a_slow_handler_stops_its_caller(autojump_clock, pair):
    """Only so much is under way: queued with the callee, in the connection's window, in the caller's hands."""
    go_on = trio.Event()
    sent = 0
    item = BytesValue(value=bytes(2**20))

    async def requests():
        nonlocal sent
        for _ in range(100):
            yield item
            sent += 1

    async def slow(requests, context):
        await go_on.wait()
        async for request in requests:
            yield Int32Value(value=len(request.value))

    pair[1].register_stream(METHOD, BytesValue, slow)
    async with stream(pair, requests()) as responses:
        await trio.sleep(20)
        assert 0 < sent <= 8 + 16 + 1  # max_queued_bytes, the largest window that a muxer of ours opens, one in hand
        go_on.set()
        assert await values(responses) == [2**20] * 100


async def test_a_slow_consumer_stops_the_handler(autojump_clock, pair):
    made = 0

    async def produce(requests, context):
        nonlocal made
        for _ in range(100):
            yield BytesValue(value=bytes(2**20))
            made += 1

    pair[1].register_stream(METHOD, Int32Value, produce)
    async with stream(pair, numbers(0), BytesValue) as responses:
        await trio.sleep(20)
        assert 0 <= made <= 16 + 1
        sizes = [len(response.value) async for response in responses]
    assert sizes == [2**20] * 100


async def test_an_item_above_the_limit_is_refused_on_either_side(autojump_clock, pair):
    async def large():
        yield BytesValue(value=bytes(2**22 + 2**17))

    pair[1].register_stream(METHOD, BytesValue, lambda requests, context: large())
    async with stream(pair, large(), BytesValue) as responses:
        with pytest.raises(MessageTooLarge, match="in parts") as caught:
            await anext(responses)
    assert not isinstance(caught.value, RemoteError)
    async with stream(pair, numbers(0), BytesValue) as responses:
        with pytest.raises(MessageTooLarge, match="in parts") as caught:
            await anext(responses)
    assert isinstance(caught.value, RemoteError)


async def test_an_item_of_4_mib_of_tensor_and_its_envelope_passes(autojump_clock, pair):
    """hivemind fills items with 4 MiB of tensor bytes, and the envelope comes on top."""
    pair[1].register_stream(METHOD, BytesValue, lambda requests, context: requests)

    async def large():
        yield BytesValue(value=bytes(2**22) + b"envelope")

    async with stream(pair, large(), BytesValue) as responses:
        assert [len(response.value) async for response in responses] == [2**22 + 8]


@pytest.fixture
async def deaf(autojump_clock, pair):
    """A stream whose handler has failed, of a caller that has more to send."""

    async def fail(requests, context):
        await anext(requests)
        raise ExpertFailed("no such expert")
        yield

    pair[1].register_stream(METHOD, BytesValue, fail)
    stream = await pair[0].network.open_stream(pair[1].network.peer_id, METHOD)
    await stream.send_all(calls.item_head(0))
    await trio.sleep(1)
    yield stream
    await stream.reset()


async def failure(stream) -> bytes:
    return await stream.receive_some()


async def test_a_caller_that_still_sends_is_listened_to(deaf):
    """What he sends is thrown away, so that nothing breaks under his hands before he has read the answer."""
    for _ in range(40):
        await deaf.send_all(bytes(2**20))
    await trio.sleep(1)
    assert b"no such expert" in await failure(deaf)
    await deaf.send_eof()
    assert await deaf.receive_some() == b""


async def test_a_caller_that_never_stops_is_cut_off(deaf):
    sent = 0
    with suppress(StreamError):
        while sent < 2**28:
            await deaf.send_all(bytes(2**20))
            sent += 2**20
    assert streaming.READ_ON_BYTES <= sent <= streaming.READ_ON_BYTES + 2**25  # a window more


async def test_a_caller_that_neither_sends_nor_ends_is_not_waited_for_long(deaf):
    assert b"no such expert" in await failure(deaf)
    began = trio.current_time()
    assert await deaf.receive_some() == b""
    assert trio.current_time() - began == pytest.approx(streaming.READ_ON_SECONDS - 1, abs=0.5)


async def test_a_failure_behind_the_end_of_the_items_ends_the_stream_at_once(autojump_clock, pair):
    async def fail(requests, context):
        async for request in requests:
            yield request
        raise ExpertFailed("too late")

    pair[1].register_stream(METHOD, Int32Value, fail)
    stream = await pair[0].network.open_stream(pair[1].network.peer_id, METHOD)
    await stream.send_all(calls.END_OF_ITEMS)
    began = trio.current_time()
    assert b"too late" in await failure(stream)
    assert await stream.receive_some() == b""
    assert trio.current_time() - began < 1
    await stream.reset()
