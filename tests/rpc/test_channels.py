"""Small calls between our own nodes share one stream; whatever that does not carry has a stream of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from hivemind_p2p.errors import ProtocolNotSupported, RemoteError, RPCError
from hivemind_p2p.rpc import RPC
from hivemind_p2p.rpc.channel_serving import IDLE
from hivemind_p2p.transport.api import CircuitLimit
from hivemind_p2p.wire.call_frames import CHANNEL, MAX_CALLS, MAX_REQUEST
from hivemind_p2p.wire.dht_pb2 import FindRequest
from tests.rpc.channels import Gate, ask, echo, failing_calls, streams
from tests.transport.hosts import until


async def test_calls_share_a_stream(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    gate = Gate()
    callee.register("S.gate", FindRequest, gate.answer)
    answers: list[FindRequest] = []

    async def call(number: int) -> None:
        answers.append(await caller.call(callee.network.peer_id, "S.gate", ask(str(number)), FindRequest))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(call, number)
            await until(lambda number=number: gate.under_way == number + 1)
        assert streams(caller) == [CHANNEL]
        assert streams(callee) == [CHANNEL]
        gate.open.set()
    assert sorted(int(answer.keys[0]) for answer in answers) == list(range(20))


async def test_a_channel_ends_by_itself_and_the_next_call_opens_another(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    callee.register("S.echo", FindRequest, echo)
    for _ in range(3):
        for _ in range(2):
            assert await caller.call(callee.network.peer_id, "S.echo", ask(), FindRequest) == ask()
        assert streams(caller) == [CHANNEL]
        await trio.sleep(3 * IDLE)
        assert (streams(caller), streams(callee)) == ([], [])


async def test_a_long_call_keeps_its_channel(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    gate = Gate()
    callee.register("S.gate", FindRequest, gate.answer)
    callee.register("S.echo", FindRequest, echo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: caller.call(callee.network.peer_id, "S.gate", ask(), FindRequest, timeout=1000))
        await trio.sleep(10 * IDLE)
        assert await caller.call(callee.network.peer_id, "S.echo", ask(), FindRequest) == ask()
        assert streams(caller) == [CHANNEL]
        gate.open.set()


async def test_what_is_large_or_too_much_at_once_has_streams_of_its_own(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    peer = callee.network.peer_id
    gate = Gate()
    callee.register("S.gate", FindRequest, gate.answer)
    callee.register("S.echo", FindRequest, echo)
    large = ask(size=MAX_REQUEST)
    assert await caller.call(peer, "S.echo", large, FindRequest) == large
    assert CHANNEL not in streams(caller)
    assert await caller.call(peer, "S.echo", ask(), FindRequest, carries=MAX_REQUEST + 1) == ask()
    assert CHANNEL not in streams(caller)
    almost = ask(size=MAX_REQUEST - 200)
    assert await caller.call(peer, "S.echo", almost, FindRequest) == almost
    assert streams(caller) == [CHANNEL]

    async with trio.open_nursery() as nursery:
        for _ in range(MAX_CALLS + 3):
            nursery.start_soon(lambda: caller.call(peer, "S.gate", ask(), FindRequest, timeout=1000))
            await trio.sleep(0.1)  # two calls in one moment may find the memory pipe full
        assert streams(caller) == [CHANNEL, *["S.gate"] * 3]
        assert await caller.call(peer, "S.echo", ask(), FindRequest) == ask()
        gate.open.set()


async def test_an_answer_larger_than_was_known_comes_whole(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    callee.register("S.grow", FindRequest, lambda request, context: ask(size=2_000_000))
    for _ in range(3):
        assert await caller.call(callee.network.peer_id, "S.grow", ask(), FindRequest) == ask(size=2_000_000)
    assert streams(caller) == [CHANNEL]
    callee.register("S.burst", FindRequest, lambda request, context: ask(size=callee.settings.max_message_bytes))
    with pytest.raises(RPCError, match="above the limit"):
        await caller.call(callee.network.peer_id, "S.burst", ask(), FindRequest)
    assert streams(caller) == [CHANNEL]


async def test_who_gives_up_is_heard_and_others_go_on(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    gate = Gate()
    callee.register("S.gate", FindRequest, gate.answer)
    callee.register("S.echo", FindRequest, echo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: caller.call(callee.network.peer_id, "S.gate", ask(), FindRequest, timeout=1000))
        await until(lambda: gate.under_way == 1)
        for _ in range(3 * MAX_CALLS):
            with trio.move_on_after(0.05):
                await caller.call(callee.network.peer_id, "S.gate", ask(), FindRequest)
        await until(lambda: gate.under_way == 1)
        assert gate.given_up == 3 * MAX_CALLS
        assert await caller.call(callee.network.peer_id, "S.echo", ask(), FindRequest) == ask()
        assert streams(caller) == [CHANNEL]
        gate.open.set()


async def test_a_handler_that_fails_fails_its_call_alone(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted

    async def fail(request: FindRequest, context: object) -> FindRequest:
        raise ValueError("no luck")

    callee.register("S.fail", FindRequest, fail)
    callee.register("S.echo", FindRequest, echo)
    with pytest.raises(RemoteError, match="ValueError: no luck"):
        await caller.call(callee.network.peer_id, "S.fail", ask(), FindRequest)
    with pytest.raises(ProtocolNotSupported, match="does not serve"):
        await caller.call(callee.network.peer_id, "S.nothing", ask(), FindRequest)
    assert await caller.call(callee.network.peer_id, "S.echo", ask(), FindRequest) == ask()
    assert streams(caller) == [CHANNEL]


async def test_a_method_of_items_is_not_called_on_a_channel(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted

    async def each(requests: AsyncIterator[FindRequest], context: object) -> AsyncIterator[FindRequest]:
        async for request in requests:
            yield request

    callee.register_stream("S.each", FindRequest, each)
    with pytest.raises(ProtocolNotSupported, match="does not serve"):
        await caller.call(callee.network.peer_id, "S.each", ask(), FindRequest)


async def test_calls_end_with_the_connection(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    async with trio.open_nursery() as nursery:
        gate, failures = await failing_calls(acquainted, nursery, 3)
        await caller.network.connections()[0].aclose()
    assert len(failures) == 3
    await until(lambda: gate.given_up == 3)
    gate.open.set()
    assert await caller.call(callee.network.peer_id, "S.gate", ask(), FindRequest) == ask()


async def test_who_stops_tells_those_who_wait(autojump_clock, acquainted: tuple[RPC, RPC]):
    async with trio.open_nursery() as nursery:
        gate, failures = await failing_calls(acquainted, nursery, 2)
        await acquainted[1].__aexit__(None, None, None)
    assert (len(failures), gate.given_up) == (2, 2)
    assert all("threw the stream" in str(error) for error in failures)


async def test_who_gives_up_in_line_holds_nothing(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    peer = callee.network.peer_id
    gate = Gate()
    callee.register("S.gate", FindRequest, gate.answer)
    most = callee.settings.max_calls_per_peer
    async with trio.open_nursery() as nursery:
        for _ in range(most):
            nursery.start_soon(lambda: caller.call(peer, "S.gate", ask(), FindRequest, timeout=1000))
            await trio.sleep(0.1)
        for _ in range(5):
            with trio.move_on_after(0.1):
                await caller.call(peer, "S.gate", ask(), FindRequest)
            await trio.sleep(0.1)
        assert (gate.under_way, gate.given_up) == (most, 0)
        assert len(callee._under_way) == most + 1  # those calls, and the channel
        gate.open.set()
    assert await caller.call(peer, "S.gate", ask(), FindRequest) == ask()


async def test_requests_for_which_there_is_no_room_wait_unread(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    callee._budget._per_peer = 250_000
    gate = Gate()
    callee.register("S.gate", FindRequest, gate.answer)
    answers: list[FindRequest] = []

    async def call() -> None:
        request = ask(size=100_000)
        answers.append(await caller.call(callee.network.peer_id, "S.gate", request, FindRequest))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(call)
            await trio.sleep(0.2)
        assert gate.under_way == 2
        began = trio.current_time()
        gate.open.set()
    assert answers == [ask(size=100_000)] * 6
    assert trio.current_time() - began < IDLE  # by the virtual clock: nobody waited until the channel ended
    await trio.sleep(3 * IDLE)
    assert callee._budget._accounts == {}


async def test_calls_on_a_channel_are_traced(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    served: list[object] = []
    callee.trace = served.append
    gate = Gate()
    gate.open.set()
    callee.register("S.echo", FindRequest, echo)
    callee.register("S.gate", FindRequest, gate.answer)
    for method in ("S.echo", "S.gate"):
        await caller.call(callee.network.peer_id, method, ask(), FindRequest)
    await trio.sleep(0.1)
    assert [type(event).__name__ for event in served] == ["CallStarted", "CallEnded"] * 2


async def test_a_circuit_that_a_relay_limits_has_no_channel(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    callee.register("S.echo", FindRequest, echo)
    caller.network.connections()[0].limit = CircuitLimit(seconds=1000)
    assert await caller.call(callee.network.peer_id, "S.echo", ask(), FindRequest) == ask()
    assert CHANNEL not in streams(caller)
