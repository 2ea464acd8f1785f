"""Any split of the bytes gives the same frames; what is too large or garbage costs no memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.errors import MessageTooLarge, ProtocolViolation, RPCError
from hivemind_p2p.wire import calls
from hivemind_p2p.wire.framing import Frame, FrameReader, read_varint, varint, varint_header

LIMIT = 2**20
FRAMINGS = {
    "varint": (varint_header, lambda marker, body: varint(len(body)) + body),
    "items": (calls.item_header, lambda marker, body: calls.item_head(len(body), marker) + body),
}
bodies = st.one_of(st.binary(max_size=40), st.integers(0, 3 * 2**17).map(lambda size: bytes([size % 251]) * size))


def frames_of(reader: FrameReader) -> tuple[list[Frame], str | None]:
    """What the reader has, and the failure behind it."""
    frames = []
    try:
        while (frame := reader.pop()) is not None:
            frames.append(frame)
    except RPCError as error:
        return frames, str(error)
    return frames, None


def read_in_pieces(read_header, raw: bytes, cuts: list[int], *, in_place: bool):
    reader, position, outcome = FrameReader(read_header, LIMIT), 0, ([], None)
    for cut in [*sorted(cut for cut in cuts if cut < len(raw)), len(raw)]:
        while in_place and (room := reader.room()) is not None:
            size = len(room)
            if position + size > cut:
                room.release()
                break
            with room:
                room[:] = raw[position : position + size]
            reader.filled()
            position += size
        reader.feed(raw[position:cut])
        position = max(position, cut)
        frames, failure = frames_of(reader)
        outcome = (outcome[0] + frames, failure)
    return outcome, reader.between_frames


@pytest.mark.parametrize("framing", FRAMINGS)
@given(
    messages=st.lists(st.tuples(st.integers(0, 1), bodies), max_size=4),
    cuts=st.lists(st.integers(0, 2**20), max_size=12),
    tail=st.binary(max_size=12),
    in_place=st.booleans(),
)
def test_any_split_of_the_bytes_gives_the_same_frames(framing, messages, cuts, tail, in_place):
    read_header, write = FRAMINGS[framing]
    raw = b"".join(write(marker, body) for marker, body in messages) + tail
    whole = read_in_pieces(read_header, raw, [], in_place=False)
    assert read_in_pieces(read_header, raw, cuts, in_place=in_place) == whole
    expected = [Frame(marker if framing == "items" else 0, bytearray(body)) for marker, body in messages]
    assert whole[0][0][: len(messages)] == expected
    if not tail:
        assert whole == ((expected, None), True)


@given(raw=st.binary(max_size=60), framing=st.sampled_from(sorted(FRAMINGS)))
def test_byte_by_byte_is_like_all_at_once(raw, framing):
    read_header, _ = FRAMINGS[framing]
    whole = read_in_pieces(read_header, raw, [], in_place=False)
    assert read_in_pieces(read_header, raw, list(range(len(raw))), in_place=False) == whole


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_length_above_the_limit_is_refused_by_its_header(framing):
    read_header, write = FRAMINGS[framing]
    reader = FrameReader(read_header, 1000)
    reader.feed(write(0, b"a" * 1000))
    reader.feed(write(0, b"a" * 1001)[:12])
    assert len(reader.pop().body) == 1000
    with pytest.raises(MessageTooLarge, match="1001 bytes is above the limit of 1000"):
        reader.pop()
    assert reader.room() is None
    reader.feed(b"what comes behind is passed over")
    with pytest.raises(MessageTooLarge):
        reader.pop()


def test_a_length_alone_makes_us_hold_little():
    """Memory grows with what has come, at most fourfold."""
    reader = FrameReader(varint_header, 2**22)
    reader.feed(varint(2**22))
    come, held = 0, []
    while (room := reader.room()) is not None:
        with room:
            come += len(room)
            held.append((come - len(room), come))
        reader.filled()
    assert held[0] == (0, 2**16)
    assert all(now <= 4 * before for before, now in held[1:])
    assert len(reader.pop().body) == come == 2**22


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3))
def test_varints(number, behind):
    encoded = varint(number)
    assert read_varint(memoryview(encoded + behind), 0) == (number, len(encoded))
    assert read_varint(memoryview(encoded)[:-1], 0) is None


@pytest.mark.parametrize("raw", [b"\xff" * 10, b"\xff" * 9 + b"\x02", b"\x80" * 10 + b"\x01"])
def test_a_varint_of_more_than_64_bits_is_garbage(raw):
    with pytest.raises(ProtocolViolation, match="64 bits"):
        read_varint(bytearray(raw), 0)
