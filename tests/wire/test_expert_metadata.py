from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.wire import msgpack
from hivemind_p2p.wire.expert_metadata import (
    AnswerNotes,
    Urgency,
    Wish,
    pack_codecs,
    pack_notes,
    pack_wish,
    read_codecs,
    read_notes,
    read_urgency,
    read_wish,
)


def test_what_is_packed_is_read() -> None:
    assert read_wish(pack_wish(Wish(100))) == Wish(100)
    assert read_wish(pack_wish(Wish())) == Wish(None)
    both = pack_wish(Wish(3), Urgency(1.5, 2.0))
    assert (read_wish(both), read_urgency(both)) == (Wish(3), Urgency(1.5, 2.0))
    assert read_urgency(pack_wish(Wish(3))) == Urgency(None, 0.0)
    assert read_notes(pack_notes([0.1, None], 2e6)) == AnswerNotes((0.1, None), 2e6)
    assert read_notes(pack_notes([], None)) == AnswerNotes()
    assert read_codecs(pack_codecs([0, 100])) == {0, 100}


def test_hivemind_s_say_nothing() -> None:
    assert read_wish(b"") is None
    assert read_urgency(b"") == Urgency()
    assert read_notes(b"") == AnswerNotes()
    assert read_codecs(b"") == frozenset()


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "1", None, [1]])
def test_what_is_no_measure_is_left_out(value) -> None:
    packed = msgpack.dumps({"errors": [value, 0.5], "received": value})
    assert read_notes(packed) == AnswerNotes((None, 0.5), None)
    assert read_urgency(msgpack.dumps({"timeout": value, "priority": value})) == Urgency(), "nobody goes before others"


@given(
    st.binary(max_size=40)
    | st.recursive(st.none() | st.integers(-9, 9) | st.text(max_size=3), st.lists).map(msgpack.dumps)
)
def test_garbage_is_nothing(metadata: bytes) -> None:
    assert read_wish(metadata) is None
    assert read_notes(metadata) == AnswerNotes()
    assert read_codecs(metadata) == frozenset()
