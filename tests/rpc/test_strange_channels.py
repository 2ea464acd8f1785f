"""Channels of calls to peers that break the rules, or have none."""

from __future__ import annotations

import pytest
import trio

from hivemind_p2p.errors import RPCError, StreamError
from hivemind_p2p.rpc import RPC
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.wire import call_frames
from hivemind_p2p.wire.call_frames import CHANNEL, MAX_CALLS, Kind
from hivemind_p2p.wire.dht_pb2 import FindRequest
from hivemind_p2p.wire.framing import FrameReader, varint, varint_header
from tests.rpc.channels import Gate, ask, echo, frame, streams
from tests.transport.hosts import until


async def answers(stream: Stream, count: int) -> list[tuple[Kind, int, bytes]]:
    """What comes on a channel, in order."""
    reader = FrameReader(varint_header, 2**22)
    found: list[tuple[Kind, int, bytes]] = []
    while len(found) < count:
        reader.feed(await stream.receive_some())
        while (each := reader.pop()) is not None:
            kind, number, _, data = call_frames.read(each.body)
            found.append((kind, number, bytes(data)))
    return found


@pytest.mark.parametrize(
    "garbage",
    [
        frame(Kind.ANSWER, 1),
        frame(Kind.CALL, 1, ask().SerializeToString(), "S.gate") * 2,
        b"\x02\x07\x01",
        b"\x01\x00",
        b"\x03\x00\x01\x09",
        b"\x00",
        b"\xff\xff\xff\xff\x7f",
        b"\xff" * 12,
        frame(Kind.CALL, 2**63, b"", "S.gate"),
        frame(Kind.CANCEL, 1, b"why"),
        varint(2 + 2 + 2000) + b"\x00\x01" + varint(2000) + b"S" * 2000,
    ],
)
async def test_who_breaks_the_rules_loses_its_channel(autojump_clock, acquainted: tuple[RPC, RPC], garbage: bytes):
    caller, callee = acquainted
    gate = Gate()
    callee.register("S.gate", FindRequest, gate.answer)
    stream = await caller.network.open_stream(callee.network.peer_id, CHANNEL)
    await stream.send_all(garbage)
    with pytest.raises(StreamError):
        await stream.receive_some()
    await until(lambda: gate.under_way == 0 and len(callee._under_way) == 0)
    gate.open.set()
    assert await caller.call(callee.network.peer_id, "S.gate", ask(), FindRequest) == ask()


async def test_what_is_no_request_is_refused_alone(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    callee.register("S.echo", FindRequest, echo)
    stream = await caller.network.open_stream(callee.network.peer_id, CHANNEL)
    await stream.send_all(frame(Kind.CALL, 5, b"\xff\xff", "S.echo") + frame(Kind.CALL, 6, b"", "S.echo"))
    assert [(kind, number) for kind, number, _ in await answers(stream, 2)] == [(Kind.ERROR, 5), (Kind.ANSWER, 6)]
    await stream.reset()


async def test_a_peer_has_few_channels_and_bounded_calls(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    gate = Gate()
    callee.register("S.gate", FindRequest, gate.answer)
    opened = []
    for _ in range(5):
        stream = await caller.network.open_stream(callee.network.peer_id, CHANNEL)
        await stream.send_all(frame(Kind.CALL, 1, b"", "S.gate"))
        opened.append(stream)
    with pytest.raises(StreamError):
        await opened[4].receive_some()
    flood = b"".join(frame(Kind.CALL, number, b"", "S.gate") for number in range(2, 2 * MAX_CALLS + 2))
    await opened[0].send_all(flood)
    said = bytearray()
    while b"Overloaded" not in said:
        said += await opened[0].receive_some()
    for stream in opened:
        await stream.reset()
    await until(lambda: gate.under_way == 0 and len(callee._under_way) == 0)
    assert callee._budget._accounts == {}


@pytest.mark.parametrize(
    "answer",
    [
        frame(Kind.CALL, 1, b"", "S.echo"),
        b"\x02\x09\x01",
        b"\xff" * 12,
        frame(Kind.ANSWER, 1, ask().SerializeToString())[:-1],
    ],
)
async def test_a_callee_that_breaks_the_rules_fails_its_call(autojump_clock, acquainted, answer: bytes):
    caller, callee = acquainted

    async def strange(stream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)

    callee.network.set_stream_handler(CHANNEL, strange)
    with pytest.raises((RPCError, StreamError)):
        await caller.call(callee.network.peer_id, "S.echo", ask(), FindRequest, timeout=100)
    callee.register("S.echo", FindRequest, echo)
    callee.network.set_stream_handler(CHANNEL, callee._serving.serve)
    assert await caller.call(callee.network.peer_id, "S.echo", ask(), FindRequest) == ask()


async def test_a_channel_that_ended_before_a_call_came_costs_nothing(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    calls = 0

    def count(request: FindRequest, context: object) -> FindRequest:
        nonlocal calls
        calls += 1
        return request

    async def end(stream) -> None:
        await stream.receive_some(1)

    callee.register("S.count", FindRequest, count)
    callee.network.set_stream_handler(CHANNEL, end)
    for expected in (1, 2):
        assert await caller.call(callee.network.peer_id, "S.count", ask(), FindRequest) == ask()
        assert calls == expected


async def test_who_does_not_serve_channels_is_called_without(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    callee.register("S.echo", FindRequest, echo)
    callee.network.set_stream_handler(CHANNEL, None)  # it said that it does
    for _ in range(2):
        assert await caller.call(callee.network.peer_id, "S.echo", ask(), FindRequest) == ask()
    assert streams(caller) == []


async def test_who_takes_no_answers_is_cut_off(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    callee.register("S.grow", FindRequest, lambda request, context: ask(size=2_000_000))
    callee.register("S.echo", FindRequest, echo)
    stream = await caller.network.open_stream(callee.network.peer_id, CHANNEL)
    for number in range(10):
        await stream.send_all(frame(Kind.CALL, number, b"", "S.grow"))
    await trio.sleep(callee.settings.transfer_timeout + 1)
    with pytest.raises(StreamError):
        await stream.read_exactly(20_000_000)
    await until(lambda: len(callee._under_way) == 0)
    assert await caller.call(callee.network.peer_id, "S.echo", ask(), FindRequest) == ask()


async def test_an_answer_that_is_half_sent_is_sent_whole(autojump_clock, acquainted: tuple[RPC, RPC]):
    caller, callee = acquainted
    large = ask(size=2_000_000)

    async def grow(request: FindRequest, context: object) -> FindRequest:
        return large

    callee.register("S.grow", FindRequest, grow)
    callee.register("S.echo", FindRequest, echo)
    stream = await caller.network.open_stream(callee.network.peer_id, CHANNEL)
    await stream.send_all(frame(Kind.CALL, 1, b"", "S.grow"))
    await trio.sleep(1)  # as much of the answer has gone as the window takes
    await stream.send_all(frame(Kind.CANCEL, 1) + frame(Kind.CALL, 2, b"", "S.echo"))
    assert await answers(stream, 2) == [(Kind.ANSWER, 1, large.SerializeToString()), (Kind.ANSWER, 2, b"")]
    await stream.reset()
