"""Peers that do not keep to the wire: each ends in one clear error, and the node lives on."""

from __future__ import annotations

import pytest
import trio
from google.protobuf.wrappers_pb2 import StringValue

from hivemind_p2p.config import RPCSettings
from hivemind_p2p.errors import (
    MessageTooLarge,
    ProtocolViolation,
    RemoteError,
    StreamEnded,
    StreamError,
    StreamReset,
)
from hivemind_p2p.rpc import RPC
from hivemind_p2p.wire import calls
from hivemind_p2p.wire.framing import FrameReader, varint, varint_header

UNARY, STREAM = "Test.rpc_unary", "Test.rpc_stream"
CALL_ID = bytes(range(16))
GOOD = calls.unary_request_head(CALL_ID, b"", UNARY, 2) + b"\x0a\x00"


async def echo(request, context):
    return request


@pytest.fixture
def served(pair) -> tuple[RPC, RPC]:
    pair[1].register(UNARY, StringValue, echo)
    pair[1].register_stream(STREAM, StringValue, lambda requests, context: requests)
    return pair


async def answer_to(pair, method: str, raw: bytes, *, end: bool = False) -> bytes:
    """Everything that the callee says to these bytes."""
    caller, callee = pair
    stream = await caller.network.open_stream(callee.network.peer_id, method)
    await stream.send_all(raw)
    if end:
        await stream.send_eof()
    answer = b""
    while data := await stream.receive_some():
        answer += data
    await stream.aclose()
    return answer


def unary_answer(raw: bytes):
    reader = FrameReader(varint_header, 2**22)
    reader.feed(raw)
    return calls.read_response(reader.pop().body)


UNARY_GARBAGE = {
    "too long": (varint(2**22 + 1), "MessageTooLarge: a message of 4194305 bytes is above the limit of 4194304"),
    "no length": (b"\xff" * 10, "ProtocolViolation: a varint has more than 64 bits"),
    "no call": (varint(4) + b"\x0a\x02hi", "ProtocolViolation: a message is neither a call nor an answer"),
    "no message": (
        calls.unary_request_head(CALL_ID, b"", UNARY, 2) + b"\xff\xff",
        "ProtocolViolation: 2 bytes are not a StringValue",
    ),
}


@pytest.mark.parametrize(("raw", "text"), UNARY_GARBAGE.values(), ids=UNARY_GARBAGE)
async def test_a_caller_of_garbage_is_told_why(autojump_clock, served, raw, text):
    assert unary_answer(await answer_to(served, UNARY, raw)).text.startswith(text)
    response = await served[0].call(served[1].network.peer_id, UNARY, StringValue(value="still here"), StringValue)
    assert response.value == "still here"


STREAM_GARBAGE = {
    "too long": (calls.item_head(2**22 + 2**16 + 1), "MessageTooLarge: "),
    "no marker": (b"\x07", "ProtocolViolation: an item begins with 0x07"),
    "no message": (calls.item_head(2) + b"\xff\xff", "ProtocolViolation: 2 bytes are not a StringValue"),
    "an error": (calls.error_item("help"), "ProtocolViolation: an error came instead of an item: help"),
    "no error": (calls.item_head(2, 1) + b"\xff\xff", "ProtocolViolation: an error item holds no RPCError"),
}


@pytest.mark.parametrize(("raw", "text"), STREAM_GARBAGE.values(), ids=STREAM_GARBAGE)
async def test_a_streamer_of_garbage_is_told_why(autojump_clock, served, raw, text):
    good = calls.item_head(3) + b"\x0a\x01x"
    answer = await answer_to(served, STREAM, good + raw)
    assert answer.startswith(good)
    reader = FrameReader(calls.item_header, 2**22)
    reader.feed(answer[len(good) :])
    assert calls.read_item(reader.pop()).text.startswith(text)


@pytest.mark.parametrize("raw", [b"", GOOD[:1], GOOD[:20], GOOD + GOOD])
async def test_a_caller_that_ends_or_asks_twice_gets_nothing(autojump_clock, served, raw):
    with pytest.raises(StreamReset):
        await answer_to(served, UNARY, raw, end=True)


async def test_a_caller_that_sends_more_than_its_request_is_dropped(autojump_clock, pair):
    started, cancelled = trio.Event(), trio.Event()

    async def wait(request, context):
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    pair[1].register(UNARY, StringValue, wait)
    stream = await pair[0].network.open_stream(pair[1].network.peer_id, UNARY)
    await stream.send_all(GOOD)
    await started.wait()
    await stream.send_all(GOOD[:1])
    with pytest.raises(StreamReset):
        await stream.receive_some()
    assert cancelled.is_set()


async def test_a_caller_that_asks_twice_at_once_is_not_served(autojump_clock, pair):
    pair[1].register(UNARY, StringValue, lambda request, context: pytest.fail("it was served"))
    with pytest.raises(StreamReset):
        await answer_to(pair, UNARY, GOOD + GOOD)


async def test_a_request_that_never_comes_whole_is_given_up(autojump_clock, served):
    before = trio.current_time()
    with pytest.raises(StreamReset):
        await answer_to(served, UNARY, GOOD[:-1])
    assert 60 <= trio.current_time() - before < 61


ANSWERS = {
    "nothing": (b"", StreamError, "without an answer"),
    "half": (calls.unary_response_head(CALL_ID, 9)[:5], StreamEnded, "within a message"),
    "too long": (varint(2**22 + 1), MessageTooLarge, "4194305"),
    "another call": (calls.unary_response_head(bytes(16), 0), ProtocolViolation, "another call"),
    "the error of another call": (calls.unary_error(bytes(range(1, 17)), "no"), ProtocolViolation, "another call"),
    "a question": (GOOD, ProtocolViolation, "neither a call nor an answer"),
    "an error without a call": (calls.unary_error(bytes(16), "ValueError: no"), RemoteError, "ValueError: no"),
}


@pytest.mark.parametrize(("raw", "error", "why"), ANSWERS.values(), ids=ANSWERS)
async def test_a_callee_that_answers_garbage(autojump_clock, pair, raw, error, why):
    caller, callee = pair

    async def answer(stream):
        await stream.receive_some()
        await stream.send_all(raw)

    callee.network.set_stream_handler(UNARY, answer)
    with pytest.raises(error, match=why):
        await caller.call(callee.network.peer_id, UNARY, StringValue(), StringValue)


async def test_a_callee_whose_response_is_no_message(autojump_clock, pair):
    caller, callee = pair

    async def answer(stream):
        reader = FrameReader(varint_header, 1000)
        reader.feed(await stream.receive_some())
        call_id = calls.read_request(reader.pop().body).call_id
        await stream.send_all(calls.unary_response_head(call_id, 2) + b"\xff\xff")

    callee.network.set_stream_handler(UNARY, answer)
    with pytest.raises(ProtocolViolation, match="2 bytes are not a StringValue"):
        await caller.call(callee.network.peer_id, UNARY, StringValue(), StringValue)


async def test_a_stream_that_ends_within_an_item_is_no_end(autojump_clock, pair):
    caller, callee = pair

    async def truncate(stream):
        await stream.send_all(calls.item_head(2) + b"\x0a\x00" + calls.item_head(5) + b"\x0a")

    callee.network.set_stream_handler(STREAM, truncate)

    async def nothing():
        return
        yield

    async with caller.stream_call(callee.network.peer_id, STREAM, nothing(), StringValue) as responses:
        assert (await anext(responses)).value == ""
        with pytest.raises(StreamEnded, match="within a message"):
            await anext(responses)


async def test_a_callee_with_a_smaller_limit_says_so(autojump_clock, pair):
    """Its answer is read although it does not read ours to the end."""
    caller, callee = pair
    callee.settings = RPCSettings(max_message_bytes=1000)
    callee.register(UNARY, StringValue, echo)
    with pytest.raises(MessageTooLarge, match="above the limit of 1000") as caught:
        await caller.call(callee.network.peer_id, UNARY, StringValue(value="x" * 2**21), StringValue)
    assert isinstance(caught.value, RemoteError)
    with pytest.raises(MessageTooLarge, match="max_message_bytes") as caught:
        await caller.call(callee.network.peer_id, UNARY, StringValue(value="x" * 2**22), StringValue)
    assert not isinstance(caught.value, RemoteError)
