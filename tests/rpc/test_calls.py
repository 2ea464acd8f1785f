"""Calls between two nodes, over real connections in memory."""

from __future__ import annotations

import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from hivemind_p2p.errors import DeadlineExceeded, ProtocolNotSupported, RemoteError, SchemaMismatch

HELLO = "Greeter.rpc_hello"


async def greet(request, context) -> StringValue:
    return StringValue(value=f"hello {request.value}")


async def words(*values):
    for value in values:
        yield StringValue(value=value)


async def greet_all(requests, context):
    async for request in requests:
        yield await greet(request, context)


async def test_a_call(autojump_clock, pair):
    caller, callee = pair
    callee.register(HELLO, StringValue, greet)
    response = await caller.call(callee.network.peer_id, HELLO, StringValue(value="world"), StringValue)
    assert response.value == "hello world"


@pytest.mark.parametrize("size", [0, 1, 2**14, 2**16, 2**21, 2**22 - 200])
async def test_messages_of_any_size_up_to_the_limit(autojump_clock, pair, size):
    caller, callee = pair

    async def echo(request, context) -> BytesValue:
        return request

    callee.register("Test.echo", BytesValue, echo)
    data = bytes(range(256)) * (size // 256 + 1)
    response = await caller.call(callee.network.peer_id, "Test.echo", BytesValue(value=data[:size]), BytesValue)
    assert response.value == data[:size]


async def test_a_stream_of_calls(autojump_clock, pair):
    caller, callee = pair
    callee.register_stream(HELLO, StringValue, greet_all)
    async with caller.stream_call(callee.network.peer_id, HELLO, words("a", "b", "c"), StringValue) as responses:
        assert [response.value async for response in responses] == ["hello a", "hello b", "hello c"]


async def test_what_is_not_served(autojump_clock, pair):
    caller, callee = pair
    with pytest.raises(ProtocolNotSupported, match=HELLO):
        await caller.call(callee.network.peer_id, HELLO, StringValue(), StringValue)


async def test_a_handlers_error_reaches_the_caller(autojump_clock, pair):
    caller, callee = pair

    async def refuse(request, context):
        raise SchemaMismatch("two inputs are wanted, not one")

    callee.register(HELLO, StringValue, refuse)
    with pytest.raises(SchemaMismatch, match="two inputs") as caught:
        await caller.call(callee.network.peer_id, HELLO, StringValue(), StringValue)
    assert isinstance(caught.value, RemoteError)
    assert caught.value.remote_text == "SchemaMismatch: two inputs are wanted, not one"


async def test_a_handler_with_nothing_to_wait_for_is_a_plain_function(autojump_clock, pair):
    caller, callee = pair

    def greet(request, context):
        if request.value == "nobody":
            raise SchemaMismatch("a name is wanted")
        return StringValue(value=f"hello {request.value}") if request.value else None

    callee.register(HELLO, StringValue, greet)

    async def ask(value: str) -> str:
        return (await caller.call(callee.network.peer_id, HELLO, StringValue(value=value), StringValue)).value

    assert [await ask(value) for value in ("a", "b")] == ["hello a", "hello b"]
    with pytest.raises(SchemaMismatch, match="a name is wanted"):
        await ask("nobody")
    with pytest.raises(RemoteError, match="NoneType"):
        await ask("")


async def test_a_deadline_cancels_the_handler(autojump_clock, pair):
    caller, callee = pair
    cancelled = trio.Event()

    async def sleep(request, context):
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    callee.register(HELLO, StringValue, sleep)
    with pytest.raises(DeadlineExceeded, match=r"within 5 s"):
        await caller.call(callee.network.peer_id, HELLO, StringValue(), StringValue, timeout=5)
    await cancelled.wait()
