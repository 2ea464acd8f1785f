"""The rules at the top of ``yamux.session``, one by one."""

from __future__ import annotations

import pytest

from hivemind_p2p.transport.yamux import frames
from hivemind_p2p.transport.yamux.events import (
    DataReceived,
    EndReceived,
    GoAwayReceived,
    PongReceived,
    ResetReceived,
    SessionFailed,
    StreamOpened,
    StreamOverflowed,
    StreamRefused,
    WindowOpened,
)
from hivemind_p2p.transport.yamux.frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    frame,
)
from tests.transport.yamux.sessions import KIB, MIB, feed, merged, output, parse, session

GOODBYE = (GO_AWAY, 0, 0, frames.PROTOCOL_ERROR)


def opened(**limits):
    """A session that accepted stream 1, and the stream."""
    one = session(initiator=False, **limits)
    [event] = feed(one, frame(DATA, SYN, 1, 0))
    return one, event.stream


def failure(one, data: bytes) -> str:
    """Why the session failed on ``data``; it must have said so to the peer, and must be deaf from then on."""
    event = feed(one, data)[-1]
    assert isinstance(event, SessionFailed)
    assert one.failed
    assert parse(output(one))[-1] == GOODBYE
    assert feed(one, frame(PING, SYN, 0, 1)) == []
    assert output(one) == b""
    return event.reason


def test_the_first_words_on_a_stream_are_those_of_the_specification():
    one = session()
    assert one.send(one.open_stream(0), memoryview(b"hi")) == 2
    assert output(one) == bytes.fromhex("00 00 0001 00000001 00000002") + b"hi"
    other = session(initiator=False)
    stream = other.open_stream(0)
    other.end(stream)
    assert output(other) == bytes.fromhex("00 01 0005 00000002 00000000")


def test_each_side_counts_in_its_own_ids():
    assert [session().open_stream(0).id for _ in range(2)] == [1, 1]
    one = session(initiator=False)
    assert [one.open_stream(0).id for _ in range(3)] == [2, 4, 6]
    assert "ours to use" in failure(one, frame(DATA, SYN, 8, 0))


def test_an_id_cannot_be_opened_twice():
    one, _ = opened()
    assert "twice" in failure(one, frame(WINDOW_UPDATE, SYN, 1, 0))


def test_syn_and_ack_travel_with_the_first_frame_and_only_with_it():
    one, stream = opened()
    one.send(stream, memoryview(b"a"))
    one.send(stream, memoryview(b"b"))
    assert parse(output(one)) == [(DATA, ACK, 1, 1), (DATA, 0, 1, 1)]
    mine = one.open_stream(0)
    one.announce(mine)
    one.announce(mine)
    one.reset(mine)
    assert parse(output(one)) == [(WINDOW_UPDATE, SYN, 2, 0), (WINDOW_UPDATE, RST, 2, 0)]


def test_what_we_are_done_with_is_ended_and_what_still_comes_is_dropped():
    one, stream = opened()
    feed(one, frame(DATA, 0, 1, 5) + b"never")
    one.close(stream)
    one.close(stream)
    assert parse(output(one)) == [(WINDOW_UPDATE, ACK | FIN, 1, 0)]
    assert (len(one), one.inbound_count, one.windows.held, one.windows.granted) == (1, 0, 0, 0)
    assert merged(feed(one, frame(DATA, 0, 1, 4) + b"read")) == []
    assert one.windows.held == 0
    feed(one, frame(DATA, FIN, 1, 1) + b"!")
    assert output(one) == b""
    assert (len(one), one.inbound_count) == (0, 0)


def test_what_we_are_done_with_is_forgotten_when_the_peer_was_done_before():
    one, stream = opened()
    feed(one, frame(WINDOW_UPDATE, FIN, 1, 0))
    one.close(stream)
    assert parse(output(one)) == [(WINDOW_UPDATE, ACK | FIN, 1, 0)]
    assert len(one) == 0


@pytest.mark.parametrize("unread", [0, 100 * KIB])
def test_a_peer_that_goes_on_after_we_are_done_is_told_to_stop(unread):
    one, stream = opened()
    feed(one, frame(DATA, 0, 1, unread) + bytes(unread))
    one.close(stream)
    output(one)
    for size in (128 * KIB - unread, 1):
        assert stream.open
        feed(one, frame(DATA, 0, 1, size) + bytes(size))
    assert parse(output(one)) == [(WINDOW_UPDATE, RST, 1, 0)]
    assert (len(one), one.inbound_count, one.windows.held) == (0, 0, 0)


def test_a_peer_that_never_ends_its_streams_loses_the_oldest():
    one = session(initiator=False, max_inbound=1)
    for number in range(300):
        [event] = feed(one, frame(DATA, SYN, 2 * number + 1, 0))
        one.close(event.stream)
    assert len(one) == 256
    resets = [stream_id for _, flags, stream_id, _ in parse(output(one)) if flags & RST]
    assert resets == [2 * number + 1 for number in range(300 - 256)]


def test_what_was_never_said_needs_no_taking_back():
    one = session()
    one.reset(one.open_stream(0))
    assert output(one) == b""
    assert len(one) == 0


def test_streams_on_which_nothing_was_said_are_accepted_when_asked_to():
    one, stream = opened()
    one.acknowledge()
    one.acknowledge()
    assert parse(output(one)) == [(WINDOW_UPDATE, ACK, 1, 0)]
    assert not stream.opening


def test_data_may_come_with_syn_and_with_fin():
    one = session(initiator=False)
    assert merged(feed(one, frame(DATA, SYN | FIN, 1, 5) + b"hello")) == [
        (StreamOpened, 1),
        (DataReceived, 1, b"hello"),
        (EndReceived, 1),
    ]


def test_each_half_ends_by_itself():
    one, stream = opened()
    assert merged(feed(one, frame(WINDOW_UPDATE, FIN, 1, 0))) == [(EndReceived, 1)]
    assert one.send(stream, memoryview(b"still talking")) == 13
    one.end(stream)
    one.end(stream)
    assert parse(output(one)) == [(DATA, ACK, 1, 13), (WINDOW_UPDATE, FIN, 1, 0)]
    assert not stream.open
    assert len(one) == one.inbound_count == 0
    assert one.send(stream, memoryview(b"x")) == 0


def test_payload_after_the_end_breaks_the_protocol():
    one, _ = opened()
    assert "had ended" in failure(one, frame(DATA, FIN, 1, 0) + frame(DATA, 0, 1, 1))


def test_window_updates_after_the_end_are_welcome():
    one, stream = opened()
    events = feed(one, frame(DATA, FIN, 1, 0) + frame(WINDOW_UPDATE, 0, 1, 7))
    assert merged(events) == [(EndReceived, 1), (WindowOpened, 1)]
    assert stream.send_window == INITIAL_WINDOW + 7


def test_reset_ends_both_halves_and_what_was_under_way_is_dropped():
    one, stream = opened()
    events = feed(one, frame(DATA, 0, 1, 3) + b"abc" + frame(DATA, RST, 1, 0))
    assert merged(events) == [(DataReceived, 1, b"abc"), (ResetReceived, 1)]
    assert one.send(stream, memoryview(b"x")) == 0
    assert feed(one, frame(DATA, 0, 1, 3) + b"xyz" + frame(WINDOW_UPDATE, 0, 1, 1)) == []
    assert one.windows.held == 3, "still to be read"


def test_our_reset_drops_the_rest_of_a_frame_at_hand():
    one, stream = opened()
    feed(one, frame(DATA, 0, 1, 10) + b"12345")
    one.reset(stream)
    assert feed(one, b"67890" + frame(PING, SYN, 0, 9)) == []
    assert parse(output(one)) == [(WINDOW_UPDATE, RST | ACK, 1, 0), (PING, ACK, 0, 9)]
    assert one.windows.held == 0


def test_end_then_reset_tells_of_the_end_only():
    one, _ = opened()
    events = feed(one, frame(DATA, FIN, 1, 2) + b"ok" + frame(WINDOW_UPDATE, RST, 1, 0))
    assert merged(events) == [(DataReceived, 1, b"ok"), (EndReceived, 1), (ResetReceived, 1)]


def test_a_frame_above_the_window_fails_before_its_payload_came():
    one, _ = opened()
    assert "whose window has" in failure(one, frame(DATA, 0, 1, INITIAL_WINDOW + 1))


def test_many_frames_above_the_window_fail_as_well():
    one, _ = opened()
    full = frame(DATA, 0, 1, 64 * KIB) + bytes(64 * KIB)
    assert one.failed is False
    assert "whose window has 0" in failure(one, 4 * full + frame(DATA, 0, 1, 1))


def test_an_oversize_frame_for_nobody_fails_and_a_usual_one_is_skipped():
    one, _ = opened()
    assert feed(one, frame(DATA, 0, 77, 3) + b"abc" + frame(WINDOW_UPDATE, 0, 77, 3)) == []
    assert "not open" in failure(one, frame(DATA, 0, 77, 16 * MIB + 1))


def test_we_send_no_more_than_the_window_and_a_frame_take():
    one, stream = opened()
    data = memoryview(bytes(MIB))
    assert one.send(stream, data) == frames.MAX_PAYLOAD
    assert one.send(stream, data) == INITIAL_WINDOW - frames.MAX_PAYLOAD
    assert one.send(stream, data) == 0
    assert merged(feed(one, frame(WINDOW_UPDATE, 0, 1, 10))) == [(WindowOpened, 1)]
    assert one.send(stream, data) == 10


def test_a_window_beyond_32_bits_breaks_the_protocol():
    one, _ = opened()
    assert "opened the window" in failure(one, frame(WINDOW_UPDATE, 0, 1, frames.LARGEST_WINDOW))


def test_streams_whose_half_the_peer_has_ended_do_not_keep_it_from_as_many_more():
    one = session(initiator=False, max_inbound=2)
    for number in (1, 3):
        assert [type(each) for each in feed(one, frame(WINDOW_UPDATE, SYN | FIN, number, 0))] == [
            StreamOpened,
            EndReceived,
        ]
    events = [event for number in (5, 7, 9) for event in feed(one, frame(WINDOW_UPDATE, SYN | FIN, number, 0))]
    assert [event.stream_id for event in events if isinstance(event, StreamRefused)] == [9]
    assert one.inbound_count == 4


def test_more_streams_than_allowed_are_refused_until_one_is_over():
    one, stream = opened(max_inbound=1)
    assert merged(feed(one, frame(DATA, SYN, 3, 2) + b"hi")) == [(StreamRefused, 3)]
    assert parse(output(one)) == [(WINDOW_UPDATE, RST, 3, 0)]
    one.reset(stream)
    assert merged(feed(one, frame(DATA, SYN, 5, 0))) == [(StreamOpened, 5)]


def test_a_ping_is_answered_with_its_value_and_ours_measures_a_round_trip():
    one = session()
    feed(one, frame(PING, SYN, 0, 0xDEADBEEF))
    assert parse(output(one)) == [(PING, ACK, 0, 0xDEADBEEF)]
    one.ping(10.0)
    [(_, _, _, value)] = parse(output(one))
    assert one.receive(frame(PING, ACK, 0, value + 1), 10.1) == []
    assert one.receive(frame(PING, ACK, 0, value), 10.25) == [PongReceived(0.25)]
    assert one.receive(frame(PING, ACK, 0, value), 10.5) == []


@pytest.mark.parametrize("question", [frame(PING, SYN, 0, 1), frame(DATA, SYN, 3, 0)])
def test_a_flood_of_questions_without_taking_answers_fails(question):
    one, _ = opened(max_inbound=1)
    for _ in range(1024):
        feed(one, question)
    assert "does not take them" in failure(one, question)


def test_who_takes_the_answers_may_ask_forever():
    one = session()
    for value in range(3000):
        feed(one, frame(PING, SYN, 0, value))
        assert parse(output(one)) == [(PING, ACK, 0, value)]


def test_after_go_away_what_is_open_goes_on_and_nothing_is_opened():
    one, stream = opened()
    assert feed(one, frame(GO_AWAY, 0, 0, frames.NORMAL)) == [GoAwayReceived(frames.NORMAL)]
    assert one.exhausted
    with pytest.raises(RuntimeError):
        one.open_stream(0)
    assert feed(one, frame(DATA, SYN, 3, 0)) == []
    assert parse(output(one)) == [(WINDOW_UPDATE, RST, 3, 0)]
    assert one.send(stream, memoryview(b"x")) == 1
    assert merged(feed(one, frame(DATA, 0, 1, 1) + b"y")) == [(DataReceived, 1, b"y")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x01" + bytes(11), "version 1"),
        (frame(9, 0, 1, 0), "type 9"),
        (frame(DATA, SYN, 0, 0), "stream 0"),
        (frame(WINDOW_UPDATE, 0, 0, 1), "stream 0"),
    ],
)
def test_what_is_not_yamux_fails(data, words):
    assert words in failure(session(), data)


def test_all_ids_can_be_used_up(monkeypatch):
    monkeypatch.setattr(frames, "MAX_STREAM_ID", 3)
    one = session()
    assert [one.open_stream(0).id for _ in range(2)] == [1, 3]
    assert one.exhausted
    assert not one.going_away


def test_what_all_streams_hold_unread_is_bounded():
    one = session(initiator=False, budget=600 * KIB)
    full = INITIAL_WINDOW
    events = []
    for stream_id in (1, 3, 5):
        events += feed(one, frame(DATA, SYN, stream_id, full) + bytes(full))
    assert (StreamOverflowed, 5) in merged(events)
    assert parse(output(one)) == [(WINDOW_UPDATE, RST | ACK, 5, 0)]
    assert one.windows.held == 2 * full
    assert repr(one) == f"<Session, 2 streams, {2 * full} bytes unread>"


def test_reading_gives_the_window_back_and_asks_once_how_long_a_round_trip_takes():
    one, stream = opened()
    feed(one, frame(DATA, 0, 1, 200 * KIB) + bytes(200 * KIB))
    one.consumed(stream, 60 * KIB, now=1.0)
    assert output(one) == b"", "less than a quarter of the window"
    one.consumed(stream, 140 * KIB, now=1.0)
    assert parse(output(one)) == [(WINDOW_UPDATE, ACK, 1, 200 * KIB), (PING, SYN, 0, 1)]
    assert stream.receive_window.left == INITIAL_WINDOW
    assert repr(stream) == "<StreamState 1, open, may send 262144, holds 0>"


def test_a_window_that_grew_is_announced_with_the_next_stream():
    one, stream = opened()
    feed(one, frame(DATA, 0, 1, 200 * KIB) + bytes(200 * KIB))
    one.consumed(stream, 200 * KIB, now=0.001)
    assert parse(output(one))[0] == (WINDOW_UPDATE, ACK, 1, 200 * KIB + INITIAL_WINDOW)
    fresh = one.open_stream(0)
    one.send(fresh, memoryview(b"hi"))
    assert parse(output(one)) == [(WINDOW_UPDATE, SYN, 2, INITIAL_WINDOW), (DATA, 0, 2, 2)]
    feed(one, frame(DATA, SYN, 3, 0))
    assert parse(output(one)) == [(WINDOW_UPDATE, ACK, 3, INITIAL_WINDOW)]


def test_what_is_read_at_once_counts_as_what_is_received_and_consumed():
    kept, placed = opened()[0], opened()[0]
    head, payload = frame(DATA, FIN, 1, 200 * KIB), bytes(200 * KIB)
    for one in (kept, placed):
        feed(one, head + payload[: 10 * KIB])
    [stream] = [event.stream for event in feed(kept, payload[10 * KIB : 150 * KIB])]
    kept.consumed(stream, 140 * KIB, 0.0)
    assert placed.receiving(190 * KIB + 1) is None
    assert placed.receiving(140 * KIB).id == 1
    assert placed.received_into_place(140 * KIB, 0.0) == []
    assert repr(kept) == repr(placed)
    assert output(kept) == output(placed) != b""
    assert merged(placed.received_into_place(50 * KIB, 0.0)) == [(EndReceived, 1)]
    assert placed.receiving(1) is None


def test_payload_that_nobody_wants_has_no_place():
    one, stream = opened()
    feed(one, frame(DATA, 0, 1, 100))
    assert one.receiving(100) is stream
    one.reset(stream)
    assert one.receiving(100) is None
    feed(one, bytes(100) + frame(DATA, 0, 9, 100))
    assert one.receiving(100) is None
