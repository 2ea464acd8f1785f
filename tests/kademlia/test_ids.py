from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.kademlia import SHA1, SHA256, KeySpace


@pytest.mark.parametrize(("space", "name"), [(SHA1, "sha1"), (SHA256, "sha256")])
def test_ids_are_big_endian_digests(space: KeySpace, name: str):
    digest = hashlib.new(name, b"key").digest()
    assert space.to_bytes(space.hash(b"key")) == digest
    assert space.from_bytes(digest) == space.hash(b"key") < space.size


@given(st.integers(0, SHA1.size - 1))
def test_bytes_round_trip(node_id: int):
    assert SHA1.from_bytes(SHA1.to_bytes(node_id)) == node_id


def test_an_id_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="20 bytes, not 19"):
        SHA1.from_bytes(bytes(19))
