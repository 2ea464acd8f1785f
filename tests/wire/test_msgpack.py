"""Golden bytes are what hivemind 1.1.12's serializer wrote for the same values."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.wire import msgpack
from hivemind_p2p.wire.msgpack import PackedDictionary

hashables = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.tuples(inner, inner),
    max_leaves=5,
)
values = st.recursive(
    hashables,
    lambda inner: st.lists(inner) | st.dictionaries(hashables, inner) | st.tuples(inner, inner, inner),
    max_leaves=20,
)


@given(values)
def test_a_value_comes_back_as_what_it_was(value: object):
    assert msgpack.loads(msgpack.dumps(value)) == value


def test_golden_bytes():
    value = {"tuple": (1, ("a", b"b")), "list": [1.5, None, True]}
    packed = bytes.fromhex("82a57475706c65c70b409201c7064092a161c40162a46c69737493cb3ff8000000000000c0c3")
    assert msgpack.dumps(value) == packed
    assert msgpack.loads(packed) == value


def test_a_dictionary_value_round_trips():
    dictionary = PackedDictionary(math.inf, 5.0, [("a", b"1", 4.0), (("t", 2), b"2", 5.0)])
    assert msgpack.loads(msgpack.dumps(dictionary)) == dictionary


@pytest.mark.parametrize("thing", [object(), {1}, type("Text", (str,), {})("x"), 2**64])
def test_what_cannot_be_carried_is_refused(thing: object):
    with pytest.raises((TypeError, OverflowError)):
        msgpack.dumps([thing])


@given(st.binary())
def test_garbage_is_a_value_error_or_a_value(raw: bytes):
    with contextlib.suppress(ValueError):
        assert repr(msgpack.loads(raw)) == repr(msgpack.loads(raw))


def nested_tuples(depth: int) -> bytes:
    raw = b"\x90"
    for _ in range(depth):
        inner = b"\x91" + raw
        raw = b"\xc9" + len(inner).to_bytes(4, "big") + b"\x40" + inner
    return raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01\x02",
        b"\x81\x90\x01",  # a list as a key
        b"\xd4\x40\x01",  # a tuple that is no list
        b"\xd6\x50\x93\x01\x02\x90"[:-1] + b"\x03",  # a dictionary value without its items
        nested_tuples(msgpack.MAX_DEPTH + 1),
        nested_tuples(10_000),
        b"\x91" * 100_000,
    ],
)
def test_bad_bytes_are_refused(raw: bytes):
    with pytest.raises(ValueError):  # noqa: PT011 the text is msgpack's
        msgpack.loads(raw)


def test_tuples_nest_as_deep_as_they_can_be_read():
    value: tuple = ()
    for _ in range(msgpack.MAX_DEPTH - 1):
        value = (value,)
    assert msgpack.loads(msgpack.dumps(value)) == value
    with pytest.raises(ValueError, match="more than 16 deep"):
        msgpack.dumps((value,))


def test_unknown_extensions_are_left_as_they_are():
    code, data = msgpack.loads(b"\xd4\x07\x01")
    assert (code, data) == (7, b"\x01")
