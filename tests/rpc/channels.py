"""What tests of channels of calls share."""

from __future__ import annotations

import trio

from hivemind_p2p.errors import NodeClosed, StreamError
from hivemind_p2p.rpc import RPC
from hivemind_p2p.wire import call_frames
from hivemind_p2p.wire.call_frames import Kind
from hivemind_p2p.wire.dht_pb2 import FindRequest
from tests.transport.hosts import until


class Gate:
    """A method whose answers wait for ``open``."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.under_way = self.given_up = 0

    async def answer(self, request: FindRequest, context: object) -> FindRequest:
        self.under_way += 1
        try:
            await self.open.wait()
        except trio.Cancelled:
            self.given_up += 1
            raise
        finally:
            self.under_way -= 1
        return request


def echo(request: FindRequest, context: object) -> FindRequest:
    return request


def ask(text: str = "x", size: int = 0) -> FindRequest:
    return FindRequest(keys=[text.encode() + bytes(size)])


def streams(rpc: RPC) -> list[str]:
    """The protocols of the streams that are open."""
    return sorted(
        stream.protocol
        for connection in rpc.network.connections()
        for stream in connection._muxer._streams.values()  # type: ignore[attr-defined]
    )


def frame(kind: int, number: int, data: bytes = b"", method: str = "") -> bytes:
    return call_frames.head(Kind(kind), number, len(data), method) + data


async def failing_calls(rpcs: tuple[RPC, RPC], nursery: trio.Nursery, count: int) -> tuple[Gate, list[Exception]]:
    """Start calls of ``S.gate``, and wait until they are under way; how they fail is added to the list."""
    caller, callee = rpcs
    gate, failures = Gate(), list[Exception]()
    callee.register("S.gate", FindRequest, gate.answer)

    async def call() -> None:
        try:
            await caller.call(callee.network.peer_id, "S.gate", ask(), FindRequest)
        except (StreamError, NodeClosed) as error:
            failures.append(error)

    for _ in range(count):
        nursery.start_soon(call)
    await until(lambda: gate.under_way == count)
    return gate, failures
