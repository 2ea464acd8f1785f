"""Texts of peer ids, as records and command lines hold them."""

from __future__ import annotations

import base64

import base58
import pytest

from hivemind_p2p.wire.peer_id import MAX_LENGTH, MAX_TEXT, PeerID

LONGEST = bytes([0, MAX_LENGTH - 2]) + b"\xff" * (MAX_LENGTH - 2)


def test_every_form_of_the_longest_id_is_read():
    peer, cid = PeerID(LONGEST), b"\x01\x72" + LONGEST
    texts = [
        peer.base58,
        "b" + base64.b32encode(cid).decode().lower().rstrip("="),
        "z" + base58.b58encode(cid).decode(),
    ]
    for text in texts:
        assert len(text) <= MAX_TEXT
        assert PeerID.from_base58(text) == peer


@pytest.mark.parametrize("first", ["2", "b", "z"])
def test_a_text_that_is_too_long_is_refused_unread(first: str):
    with pytest.raises(ValueError, match=f"it has {2**24} characters"):  # reading it would take hours
        PeerID.from_base58(first + "2" * (2**24 - 1))
