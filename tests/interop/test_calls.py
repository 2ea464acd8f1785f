"""Calls between us and the real hivemind, both ways: unary, streams, errors, giving up.

``Int32Value`` is hivemind's ``TestRequest`` and ``TestResponse`` on the wire.
"""

from __future__ import annotations

import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue, Int32Value

from hivemind_p2p.errors import DeadlineExceeded, ProtocolNotSupported, RemoteError, SchemaMismatch
from hivemind_p2p.rpc import RPC, protocol_id
from hivemind_p2p.wire import calls
from tests.interop.conftest import HivemindPeer

SIZES = [0, 256, 2**16, 2**21, 2**22 - 256]


class Served:
    """What our side serves under the names of hivemind's."""

    def __init__(self, rpc: RPC) -> None:
        self.cancelled = trio.Event()
        rpc.register("Interop.rpc_square", Int32Value, self.square)
        rpc.register("Interop.rpc_fail", Int32Value, self.fail)
        rpc.register("Interop.echo", BytesValue, self.echo)
        rpc.register_stream("Interop.echo_stream", BytesValue, lambda requests, context: requests)
        rpc.register("Interop.rpc_wait", Int32Value, self.wait)
        rpc.register_stream("Interop.rpc_double", Int32Value, self.double)
        rpc.register_stream("Interop.rpc_fail_later", Int32Value, self.fail_later)
        rpc.register_stream("Interop.fail_early", BytesValue, self.fail_early)
        rpc.register_stream("Interop.rpc_wait_stream", Int32Value, self.wait_stream)

    async def square(self, request, context):
        return Int32Value(value=request.value**2)

    async def echo(self, request, context):
        return request

    async def fail(self, request, context):
        raise SchemaMismatch(f"no square of {request.value}")

    async def wait(self, request, context):
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()

    async def double(self, requests, context):
        async for request in requests:
            yield Int32Value(value=2 * request.value)

    async def fail_later(self, requests, context):
        """After the last request."""
        async for request in requests:
            yield request
        raise SchemaMismatch("two are enough")

    async def fail_early(self, requests, context):
        """While the client still sends."""
        raise SchemaMismatch("none is wanted")
        yield

    async def wait_stream(self, requests, context):
        try:
            yield Int32Value(value=1)
            await trio.sleep_forever()
        finally:
            self.cancelled.set()


@pytest.fixture
def served(rpc: RPC) -> Served:
    return Served(rpc)


def our_id(rpc: RPC) -> str:
    return rpc.network.peer_id.base58


async def square(rpc: RPC, peer_id, number: int, *, method: str = "Interop.rpc_square", **options) -> int:
    return (await rpc.call(peer_id, method, Int32Value(value=number), Int32Value, **options)).value


async def numbers(*values: int):
    for value in values:
        yield Int32Value(value=value)


# We call hivemind


async def test_we_call(rpc: RPC, hivemind: HivemindPeer):
    assert await square(rpc, hivemind.peer_id, -12) == 144
    assert await square(rpc, hivemind.peer_id, 5, method=protocol_id("Interop.rpc_square", "ours")) == 25


@pytest.mark.parametrize("size", SIZES)
async def test_we_send_and_get_much(rpc: RPC, hivemind: HivemindPeer, size: int):
    data = bytes(range(256)) * (size // 256)
    response = await rpc.call(hivemind.peer_id, "Interop.echo", BytesValue(value=data), BytesValue)
    assert response.value == data


async def test_many_calls_at_once(rpc: RPC, hivemind: HivemindPeer):
    results = {}

    async def one(number: int) -> None:
        results[number] = await square(rpc, hivemind.peer_id, number)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(one, number)
    assert results == {number: number**2 for number in range(100)}


async def test_hiveminds_error_reaches_us(rpc: RPC, hivemind: HivemindPeer):
    with pytest.raises(RemoteError, match="no square of 3") as caught:
        await square(rpc, hivemind.peer_id, 3, method="Interop.rpc_fail")
    assert caught.value.remote_text == "ValueError('no square of 3')"


async def test_hivemind_does_not_serve_it(rpc: RPC, hivemind: HivemindPeer):
    with pytest.raises(ProtocolNotSupported):
        await square(rpc, hivemind.peer_id, 3, method="Interop.rpc_nothing")


@pytest.mark.parametrize("method", ["Interop.rpc_wait"])
async def test_we_give_up_a_call(rpc: RPC, hivemind: HivemindPeer, method: str):
    with pytest.raises(DeadlineExceeded):
        await square(rpc, hivemind.peer_id, 3, method=method, timeout=0.2)
    assert await hivemind.do("wait_until_cancelled")


async def test_we_stream(rpc: RPC, hivemind: HivemindPeer):
    many = range(1000)
    async with rpc.stream_call(hivemind.peer_id, "Interop.rpc_double", numbers(*many), Int32Value) as responses:
        assert [response.value async for response in responses] == [2 * number for number in many]
    async with rpc.stream_call(hivemind.peer_id, "Interop.rpc_double", numbers(), Int32Value) as responses:
        assert [response.value async for response in responses] == []


async def test_hiveminds_stream_fails(rpc: RPC, hivemind: HivemindPeer):
    """One item, and no end: a p2pd whose handler ends before it has read all of it resets the stream, and loses the
    answer."""

    async def one_item():
        yield Int32Value(value=1)
        await trio.sleep_forever()

    async with rpc.stream_call(hivemind.peer_id, "Interop.rpc_fail_later", one_item(), Int32Value) as responses:
        assert (await anext(responses)).value == 1
        with pytest.raises(RemoteError, match="one is enough"):
            await anext(responses)


async def test_we_give_up_a_stream(rpc: RPC, hivemind: HivemindPeer):
    async with rpc.stream_call(hivemind.peer_id, "Interop.rpc_wait_stream", numbers(1), Int32Value) as responses:
        assert (await anext(responses)).value == 1
    assert await hivemind.do("wait_until_cancelled")


# hivemind calls us


async def test_hivemind_calls(rpc: RPC, served: Served, hivemind: HivemindPeer):
    assert await hivemind.do("call", peer_id=our_id(rpc), method="rpc_square", number=-12) == 144


async def test_hivemind_calls_a_namespace(rpc: RPC, served: Served, hivemind: HivemindPeer):
    rpc.register(protocol_id("Interop.rpc_square", "theirs"), Int32Value, served.square)
    call = {"peer_id": our_id(rpc), "method": "rpc_square", "number": 5}
    assert await hivemind.do("call", **call, namespace="theirs") == 25
    with pytest.raises(RuntimeError, match="protocols not supported"):
        await hivemind.do("call", **call, namespace="nobodys")


@pytest.mark.parametrize("size", SIZES)
async def test_hivemind_sends_and_gets_much(rpc: RPC, served: Served, hivemind: HivemindPeer, size: int):
    assert await hivemind.do("call_large", peer_id=our_id(rpc), size=size) == size


async def test_what_hivemind_sends_is_what_we_would(rpc: RPC, hivemind: HivemindPeer):
    """Byte for byte, but for the id of the call, which is random."""
    sent = []

    async def note(stream):
        sent.append(await stream.read_exactly(len(ours)))
        await stream.send_all(calls.unary_response_head(bytes(16), 0))

    ours = calls.unary_request_head(bytes(16), rpc.network.peer_id.to_bytes(), "Interop.rpc_square", 2) + b"\x08\x07"
    rpc.network.set_stream_handler("Interop.rpc_square", note)
    assert await hivemind.do("call", peer_id=our_id(rpc), method="rpc_square", number=7) == 0
    [theirs] = sent
    assert theirs[:3] + bytes(16) + theirs[19:] == ours


async def test_our_error_reaches_hivemind(rpc: RPC, served: Served, hivemind: HivemindPeer):
    with pytest.raises(RuntimeError, match="P2PHandlerError: SchemaMismatch: no square of 3"):
        await hivemind.do("call", peer_id=our_id(rpc), method="rpc_fail", number=3)


async def test_hivemind_gives_up_a_call(rpc: RPC, served: Served, hivemind: HivemindPeer):
    with pytest.raises(RuntimeError, match="TimeoutError"):
        await hivemind.do("call", peer_id=our_id(rpc), method="rpc_wait", number=3, timeout=0.2)
    with trio.fail_after(20):
        await served.cancelled.wait()


async def test_hivemind_streams(rpc: RPC, served: Served, hivemind: HivemindPeer):
    many = list(range(1000))
    doubled = await hivemind.do("stream", peer_id=our_id(rpc), method="rpc_double", numbers=many)
    assert doubled == [2 * number for number in many]
    assert await hivemind.do("stream", peer_id=our_id(rpc), method="rpc_double", numbers=[]) == []


async def test_hivemind_streams_much(rpc: RPC, served: Served, hivemind: HivemindPeer):
    assert await hivemind.do("stream_large", peer_id=our_id(rpc), parts=3, size=2**22) == 3 * 2**22


async def test_our_stream_fails(rpc: RPC, served: Served, hivemind: HivemindPeer):
    with pytest.raises(RuntimeError, match=r"P2PHandlerError.*SchemaMismatch: two are enough"):
        await hivemind.do("stream", peer_id=our_id(rpc), method="rpc_fail_later", numbers=[1, 2])


async def test_our_stream_fails_while_hivemind_still_sends(rpc: RPC, served: Served, hivemind: HivemindPeer):
    """Its p2pd closes the pipe between them when our stream ends; what its client has not read by then is lost."""
    for _ in range(5):
        with pytest.raises(RuntimeError, match=r"P2PHandlerError.*SchemaMismatch: none is wanted"):
            await hivemind.do(
                "stream_large", peer_id=our_id(rpc), method="Interop.fail_early", parts=10, size=2**22 - 256
            )


async def test_hivemind_gives_up_a_stream(rpc: RPC, served: Served, hivemind: HivemindPeer):
    taken = await hivemind.do("stream", peer_id=our_id(rpc), method="rpc_wait_stream", numbers=[1], take=1)
    assert taken == [1]
    with trio.fail_after(20):
        await served.cancelled.wait()
