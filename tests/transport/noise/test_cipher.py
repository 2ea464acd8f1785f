"""Noise transport messages: the bytes of the specification, any splits, and nothing that was tampered with."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.transport.noise.cipher import MAX_PLAINTEXT, BadMessage, Opener, Sealer, sealed_size, split

KEY = bytes(range(32))


def seal(sealer: Sealer, *buffers: bytes) -> bytes:
    messages = split(buffers)
    target = bytearray(sealed_size(messages))
    assert sealer.seal(messages, memoryview(target)) == len(target)
    return bytes(target)


def open_all(opener: Opener, data: bytes) -> tuple[list[bytes], bytes]:
    opener.feed(memoryview(data))
    messages = []
    while (size := opener.next_size()) is not None:
        messages.append(opener.open(size))
        assert len(messages[-1]) == size
    return messages, opener.rest()


def test_the_bytes_are_those_of_noise():
    """RFC 8439's cipher with key 00..1f, nonces 0 and 1 (four zero bytes, then the count, little-endian); made with
    PyNaCl's crypto_aead_chacha20poly1305_ietf_encrypt, which is libsodium's and not the library that we use."""
    sealer = Sealer(KEY)
    assert seal(sealer, b"hello").hex() == "0015" + GOLDEN_0
    assert seal(sealer, b"hello").hex() == "0015" + GOLDEN_1


GOLDEN_0 = "70dd2e5dc20b4c4d4898a053334e265cbd1a1b62f7"
GOLDEN_1 = "f7329f33dab0251d6127d1579180948721a20624aa"


@given(st.lists(st.integers(0, 40_000), max_size=8), st.lists(st.integers(0, 400_000), max_size=12))
def test_any_buffers_in_any_pieces_come_out_whole(sizes, cuts):
    buffers = [bytes([number]) * size for number, size in enumerate(sizes)]
    wire = seal(Sealer(KEY), *buffers)
    opener, rest, got = Opener(KEY), b"", b""
    places = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
    for begin, end in pairwise(places):
        messages, rest = open_all(opener, rest + wire[begin:end])
        got += b"".join(messages)
    assert got == b"".join(buffers)
    assert rest == b""


def test_a_large_buffer_becomes_full_messages_and_small_neighbours_one():
    large = bytes(4 * MAX_PLAINTEXT)
    assert [len(message) for message in split([b"a" * 12, b"b" * 24, large, b"c", b"d"])] == [
        36,
        *[MAX_PLAINTEXT] * 4,
        2,
    ]
    assert split([]) == []


def test_a_message_can_be_decrypted_in_place():
    opener, target = Opener(KEY), bytearray(5)
    opener.feed(memoryview(seal(Sealer(KEY), b"hello") + b"\0"))
    assert opener.next_size() == 5
    opener.open_into(memoryview(target))
    assert target == b"hello"
    assert opener.next_size() is None
    assert opener.rest() == b"\0"


@given(st.integers(0, 64), st.integers(0, 7))
def test_a_flipped_bit_never_gets_through(byte, bit):
    wire = bytearray(seal(Sealer(KEY), b"some message or other", b"") + seal(Sealer(KEY), b"x"))
    byte %= 2 + 21 + 16
    wire[byte] ^= 1 << bit
    try:
        messages, _ = open_all(Opener(KEY), bytes(wire))
    except BadMessage:
        return
    assert messages == [], "the length grew, and the message is waited for"
    assert byte < 2


def test_replayed_swapped_and_lost_messages_are_noticed():
    sealer = Sealer(KEY)
    first, second = seal(sealer, b"first"), seal(sealer, b"second")
    for wrong in (first + first, second + first, second):
        with pytest.raises(BadMessage, match="not what the peer sent"):
            open_all(Opener(KEY), wrong)


def test_a_message_shorter_than_its_tag_is_none():
    with pytest.raises(BadMessage, match="15 bytes"):
        open_all(Opener(KEY), b"\0\x0f" + bytes(15))
    opener = Opener(KEY)
    opener.feed(memoryview(b"\0\x10" + bytes(16)))
    assert opener.next_size() == 0
    with pytest.raises(BadMessage, match="not what the peer sent"):
        opener.open_into(memoryview(bytearray()))
