"""What surrounds calls: slots, shutting down, traces, logs, texts of errors, who calls."""

from __future__ import annotations

import logging

import pytest
import trio
from google.protobuf.wrappers_pb2 import StringValue

from hivemind_p2p import errors
from hivemind_p2p.config import RPCSettings
from hivemind_p2p.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidRecord,
    NodeClosed,
    RemoteError,
    RPCError,
    StreamReset,
)
from hivemind_p2p.rpc import RPC, CallContext, protocol_id
from hivemind_p2p.rpc.failures import LONGEST_TEXT, TOLD_BY_NAME, remote_error, text_of
from hivemind_p2p.rpc.slots import Slots
from hivemind_p2p.rpc.trace import CallEnded, CallStarted
from hivemind_p2p.testing import World

METHOD, SLOW = "Test.rpc_method", "Test.rpc_slow"


async def echo(request, context):
    return request


class Slow:
    """A handler that runs until it is told to go on."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.go_on = trio.Event()

    async def __call__(self, request, context):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go_on.wait()
        finally:
            self.running -= 1
        return request


async def ask(pair, method: str = METHOD, timeout: float | None = None) -> str:
    caller, callee = pair
    response = await caller.call(callee.network.peer_id, method, StringValue(value="hi"), StringValue, timeout=timeout)
    return response.value


async def test_who_calls(autojump_clock, pair):
    caller, callee = pair
    contexts = []

    async def note(request, context):
        contexts.append(context)
        return request

    callee.register(METHOD, StringValue, note)
    await ask(pair)
    [connection] = callee.network.connections(caller.network.peer_id)
    assert contexts == [CallContext(caller.network.peer_id, connection.remote_maddr, METHOD)]
    assert str(contexts[0].remote_maddr).startswith("/ip4/10.0.0.2/tcp/")


async def test_calls_above_the_limit_of_a_peer_wait_in_line(autojump_clock, pair):
    slow = Slow()
    pair[1].settings = RPCSettings(max_calls_per_peer=3)
    pair[1].register(SLOW, StringValue, slow)
    pair[1].register(METHOD, StringValue, echo)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask, pair, SLOW)
        await trio.sleep(1)
        assert slow.running == 3
        assert await ask(pair, timeout=1) == "hi"  # another method has slots of its own
        slow.go_on.set()
    assert slow.most == 3


async def test_a_call_that_is_given_up_in_line_is_not_served(autojump_clock, pair):
    slow = Slow()
    pair[1].settings = RPCSettings(max_calls=1)
    pair[1].register(SLOW, StringValue, slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, pair, SLOW)
        await trio.sleep(1)
        with pytest.raises(DeadlineExceeded):
            await ask(pair, SLOW, timeout=5)
        slow.go_on.set()
    await trio.sleep(1)
    assert slow.most == 1
    assert await ask(pair, SLOW) == "hi"


async def test_a_peer_waits_for_room_for_its_bytes(autojump_clock):
    slow, world = Slow(), World()
    settings = RPCSettings(max_bytes_per_peer=3 * 2**20)
    async with (
        world.network() as here,
        world.network() as there,
        world.network() as elsewhere,
        RPC(here, settings) as callee,
        RPC(there) as caller,
        RPC(elsewhere) as bystander,
        trio.open_nursery() as nursery,
    ):
        callee.register(SLOW, StringValue, slow)
        answered = 0

        async def call(rpc: RPC, size: int) -> None:
            nonlocal answered
            rpc.network.add_addresses(here.peer_id, here.visible_maddrs)
            response = await rpc.call(here.peer_id, SLOW, StringValue(value="x" * size), StringValue)
            answered += len(response.value) == size

        for size in [2**20] * 6:
            nursery.start_soon(call, caller, size)
        await trio.sleep(1)
        assert slow.running == 2  # envelopes count too: a third does not fit
        nursery.start_soon(call, caller, 2**21)
        nursery.start_soon(call, caller, 1000)  # small ones are free
        nursery.start_soon(call, bystander, 2**21)  # who waits, waits for itself
        await trio.sleep(1)
        assert slow.running == 4
        slow.go_on.set()
        await trio.sleep(1)
        assert (slow.running, answered) == (0, 9)
        slow.go_on = trio.Event()
        nursery.start_soon(call, caller, 2**22 - 200)  # one message is always taken
        await trio.sleep(1)
        assert slow.running == 1
        assert repr(callee._budget) == f"<ByteBudget, {2**22 - 112} bytes for 1 peers>"
        slow.go_on.set()
    assert repr(callee._budget) == "<ByteBudget, 0 bytes for 0 peers>"


async def test_items_that_wait_count_and_those_that_were_taken_do_not(autojump_clock):
    world, go_on = World(), trio.Event()
    settings = RPCSettings(max_bytes_per_peer=3 * 2**20)

    async def measure(requests, context):
        if context.method == SLOW:
            await go_on.wait()
        yield StringValue(value=str(sum([len(request.value) async for request in requests])))

    async def items():
        for _ in range(10):
            yield StringValue(value="x" * 2**20)

    async with (
        world.network() as here,
        world.network() as there,
        RPC(here, settings) as callee,
        RPC(there) as caller,
        trio.open_nursery() as nursery,
    ):
        there.add_addresses(here.peer_id, here.visible_maddrs)
        callee.register_stream(SLOW, StringValue, measure)
        callee.register_stream(METHOD, StringValue, measure)
        sums = []

        async def call(method: str) -> None:
            async with caller.stream_call(here.peer_id, method, items(), StringValue) as responses:
                sums.append((method, (await anext(responses)).value))

        nursery.start_soon(call, METHOD)
        await trio.sleep(1)
        assert sums == [(METHOD, str(10 * 2**20))]
        assert repr(callee._budget) == "<ByteBudget, 0 bytes for 0 peers>"
        nursery.start_soon(call, SLOW)
        await trio.sleep(1)
        assert repr(callee._budget) == f"<ByteBudget, {2 * (2**20 + 4)} bytes for 1 peers>"
        go_on.set()
    assert sums[1:] == [(SLOW, str(10 * 2**20))]


async def test_slots_are_forgotten_with_their_calls(autojump_clock, pair):
    slots = Slots(1, 1)
    peer = pair[0].network.peer_id
    async with slots.one(peer):
        with trio.move_on_after(1):
            async with slots.one(peer):
                raise AssertionError("there is only one slot")
        assert repr(slots) == "<Slots, 1 calls of 1 peers>"
    assert repr(slots) == "<Slots, 0 calls of 0 peers>"
    async with slots.one(peer):
        pass


async def test_leaving_cancels_the_calls_of_both_directions(autojump_clock, pair):
    caller, callee = pair
    callee.register(SLOW, StringValue, Slow())
    host = callee.network
    async with trio.open_nursery() as nursery:

        async def cut_off(rpc):
            with pytest.raises(StreamReset):
                await rpc.call(host.peer_id, SLOW, StringValue(), StringValue)

        async def closed(rpc):
            with pytest.raises(NodeClosed, match="shut down"):
                await rpc.call(host.peer_id, SLOW, StringValue(), StringValue)

        nursery.start_soon(cut_off, caller)
        async with RPC(caller.network) as another:
            nursery.start_soon(closed, another)
            await trio.sleep(1)
            assert repr(another).endswith("0 methods, 1 calls>")
        assert repr(another).endswith("not running>")
        await trio.sleep(1)
        assert repr(callee).endswith("1 methods, 1 calls>")
        await callee.__aexit__(None, None, None)
    assert "0 calls" not in repr(callee)
    with pytest.raises(NodeClosed, match="async with"):
        await callee.call(caller.network.peer_id, METHOD, StringValue(), StringValue)
    with pytest.raises(errors.ProtocolNotSupported):
        await ask((caller, callee), SLOW)


async def test_a_method_is_served_once(autojump_clock, pair):
    pair[1].register(METHOD, StringValue, echo)
    with pytest.raises(RPCError, match="served already"):
        pair[1].register_stream(METHOD, StringValue, lambda requests, context: requests)
    pair[1].unregister(METHOD)
    pair[1].unregister(METHOD)
    pair[1].register(METHOD, StringValue, echo)
    assert await ask(pair) == "hi"


async def test_namespaces_are_apart(autojump_clock, pair):
    mine = protocol_id(METHOD, "mine")
    pair[1].register(mine, StringValue, echo)
    assert await ask(pair, mine) == "hi"
    with pytest.raises(errors.ProtocolNotSupported):
        await ask(pair, METHOD)


async def test_a_bug_in_a_handler_is_told_and_logged(autojump_clock, pair, caplog):
    async def buggy(request, context):
        return {}["no such key"]

    pair[1].register(METHOD, StringValue, buggy)
    with pytest.raises(RemoteError, match=r"Test.rpc_method of 12D3.* failed there: KeyError: 'no such key'") as caught:
        await ask(pair)
    assert type(caught.value) is RemoteError
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert METHOD in record.getMessage()
    assert record.exc_info[0] is KeyError


async def test_a_refusal_is_told_and_not_logged(autojump_clock, pair, caplog):
    async def refuse(request, context):
        raise InvalidRecord("expired yesterday")

    pair[1].register(METHOD, StringValue, refuse)
    with pytest.raises(InvalidRecord, match="expired yesterday"):
        await ask(pair)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("kind", TOLD_BY_NAME)
def test_errors_that_are_told_by_name(kind):
    error = remote_error(text_of(kind("because")), "a call")
    assert isinstance(error, kind)
    assert isinstance(error, RemoteError)
    assert (error.remote_text, str(error)) == (
        f"{kind.__name__}: because",
        f"a call failed there: {kind.__name__}: because",
    )


@pytest.mark.parametrize("text", ["", "ValueError('no')", "DialError: no way", "SchemaMismatch", "x" * 10**6])
def test_other_texts_are_only_text(text):
    error = remote_error(text, "a call")
    assert type(error) is RemoteError or text == "SchemaMismatch"
    assert error.remote_text == text[:LONGEST_TEXT]


async def test_traces_tell_of_every_call(autojump_clock, pair):
    caller, callee = pair
    made, served = [], []
    caller.trace, callee.trace = made.append, served.append
    slow = Slow()
    callee.register(METHOD, StringValue, echo)
    callee.register(SLOW, StringValue, slow)
    await ask(pair)
    with pytest.raises(DeadlineExceeded):
        await ask(pair, SLOW, timeout=5)
    await trio.sleep(1)

    first, second = (event for event in made if isinstance(event, CallStarted))
    assert first == CallStarted(callee.network.peer_id, METHOD, True, StringValue(value="hi"))
    assert second.method == SLOW
    good, late = (event for event in made if isinstance(event, CallEnded))
    assert (good.call, good.error) == (first, None)
    assert 0 < good.seconds < 1
    assert isinstance(late.error, DeadlineExceeded)
    assert late.seconds == pytest.approx(5)

    good, late = (event for event in served if isinstance(event, CallEnded))
    assert good.call == CallStarted(caller.network.peer_id, METHOD, False)
    assert good.error is None
    assert isinstance(late.error, errors.StreamError)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"rpc.max_calls must be above zero"):
        RPCSettings(max_calls=0)
