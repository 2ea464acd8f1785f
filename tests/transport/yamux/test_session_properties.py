"""What holds for any bytes and any order of things: splits, interleavings, garbage, conservation."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind_p2p.transport.yamux.events import DataReceived, EndReceived, SessionFailed, StreamOpened
from hivemind_p2p.transport.yamux.frames import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW_UPDATE, frame
from hivemind_p2p.transport.yamux.session import Session
from tests.transport.yamux.sessions import KIB, feed, merged, output, session

ids = st.integers(0, 9)
flags = st.sampled_from([0, 0, 0, SYN, ACK, FIN, RST, SYN | FIN, FIN | RST, 0xFFF0])


@st.composite
def any_frame(draw) -> bytes:
    kind = draw(st.sampled_from([DATA, DATA, DATA, WINDOW_UPDATE, PING, GO_AWAY]))
    if kind == DATA:
        payload = draw(st.binary(max_size=40))
        return frame(DATA, draw(flags), draw(ids), len(payload)) + payload
    return frame(kind, draw(flags), draw(ids), draw(st.sampled_from([0, 1, 2, 5000, 2**32 - 1])))


conversations = st.lists(st.one_of(any_frame(), st.binary(max_size=20)), max_size=30).map(b"".join)


def small() -> Session:
    """Limits that a few small frames reach."""
    return session(initiator=False, max_inbound=3, max_window=256 * KIB, budget=120)


@given(conversations, st.lists(st.integers(0, 1500), max_size=40))
def test_any_split_of_the_bytes_gives_the_same_events_and_the_same_answers(data, cuts):
    whole, pieces = small(), small()
    assert merged(feed(whole, data)) == merged(feed(pieces, data, cuts))
    assert output(whole) == output(pieces)
    assert repr(whole) == repr(pieces)


@given(conversations, st.booleans())
def test_whatever_comes_only_known_events_follow_and_bounds_hold(data, initiator):
    one = session(initiator=initiator, max_inbound=3, max_window=256 * KIB, budget=120)
    events = feed(one, data)
    assert one.windows.held <= 120 + 40
    assert one.inbound_count <= 3
    assert len(one) <= 3
    failures = [event for event in events if isinstance(event, SessionFailed)]
    assert failures == events[-1:] if one.failed else not failures
    known = set()
    for event in events:
        if isinstance(event, StreamOpened):
            known.add(event.stream)
        elif isinstance(event, DataReceived | EndReceived):
            assert event.stream in known


chunks = st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=2000)), max_size=30)


@settings(max_examples=50)
@given(chunks, st.randoms(use_true_random=False), st.booleans())
def test_any_interleaving_delivers_each_stream_whole_and_in_order(plan, random, backwards):
    sender, receiver = session(initiator=not backwards), session(initiator=backwards)
    streams = [sender.open_stream(0) for _ in range(4)]
    expected = {stream.id: b"" for stream in streams}
    wire = b""
    for number, data in plan:
        stream = streams[number]
        assert sender.send(stream, memoryview(data)) == len(data)
        expected[stream.id] += data
        if random.random() < 0.5:
            wire += output(sender)
    for stream in streams:
        sender.announce(stream)
        sender.end(stream)
    wire += output(sender)
    cuts = [random.randrange(len(wire)) for _ in range(random.randrange(30))]
    got, ended = {stream.id: b"" for stream in streams}, set()
    for event in feed(receiver, wire, cuts):
        if isinstance(event, DataReceived):
            assert event.stream.id not in ended
            got[event.stream.id] += event.data
        elif isinstance(event, EndReceived):
            ended.add(event.stream.id)
    assert got == expected
    assert ended == set(expected)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 400 * KIB)), max_size=60), st.randoms())
def test_two_sessions_never_overrun_each_other_and_forget_everything(steps, random):
    """Random opens, writes, reads, ends, closes and resets on both sides; at the end nothing is left."""
    one, other = session(), session(initiator=False)
    sides = {one: other, other: one}
    known = {one: [], other: []}
    unread = {one: {}, other: {}}

    def carry() -> None:
        for here, there in sides.items():
            for event in feed(there, output(here)):
                assert not isinstance(event, SessionFailed), event
                if isinstance(event, StreamOpened):
                    known[there].append(event.stream)
                elif isinstance(event, DataReceived):
                    waiting = unread[there]
                    waiting[event.stream] = waiting.get(event.stream, 0) + len(event.data)

    for action, size in steps:
        here = random.choice([one, other])
        stream = random.choice(known[here]) if known[here] else None
        if action == 0 or stream is None:
            known[here].append(here.open_stream(0))
        elif action == 1:
            here.send(stream, memoryview(bytes(size)))
        elif action == 2 and (held := unread[here].pop(stream, 0)):
            here.consumed(stream, held, random.random())
        elif action == 3:
            here.end(stream)
        elif action >= 4:
            (here.reset if action == 4 else here.close)(stream)
            unread[here].pop(stream, None)
        if random.random() < 0.7:
            carry()
    for _ in range(4):
        carry()
        for here in sides:
            for stream in known[here]:
                here.consumed(stream, unread[here].pop(stream, 0), 0.0)
                here.end(stream)
    for here in sides:
        assert len(here) == here.inbound_count == 0
        assert here.windows.held == here.windows.granted == 0
