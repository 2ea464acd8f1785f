from __future__ import annotations

import hashlib
import math

import pytest

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import keys
from hivemind_p2p.errors import InvalidRecord

SETTINGS = DHTSettings(max_key_bytes=20, max_record_bytes=100, max_lifetime=60.0)


def sha1(data: bytes) -> int:
    return int.from_bytes(hashlib.sha1(data).digest(), "big")


@pytest.mark.parametrize(
    ("key", "packed"),
    [
        ("ffn.0.", b"\xa6ffn.0."),
        (b"raw", b"raw"),  # bytes are hashed as they are
        (7, b"\x07"),
        (None, b"\xc0"),
        (("a", 1), b"\xd6\x40\x92\xa1a\x01"),
    ],
)
def test_the_id_of_a_key_is_that_of_hivemind(key: object, packed: bytes):
    assert keys.key_id(key) == keys.checked_key_id(key, SETTINGS) == sha1(packed)


def test_tags():
    assert keys.REGULAR_TAG == keys.checked_tag(None, SETTINGS) == b"\xc0"
    assert keys.checked_tag("sub", SETTINGS) == b"\xa3sub"
    assert keys.subkey_from(b"\xa3sub") == "sub"


@pytest.mark.parametrize("tag", [b"\xff\xff", b"\x91\x01", b"\xc1", b"", b"\xc7\x06\x40\x91\x91\x01"])
def test_a_tag_that_is_no_subkey_is_refused(tag: bytes):
    with pytest.raises(ValueError):  # noqa: PT011 what it says is msgpack's business
        keys.subkey_from(tag)


@pytest.mark.parametrize("thing", [["a", "list"], ("tuple", ["of", "lists"]), {"a": 1}])
def test_keys_and_subkeys_must_be_hashable(thing: object):
    with pytest.raises(InvalidRecord, match=r"the key .* use a tuple"):
        keys.checked_key_id(thing, SETTINGS)
    with pytest.raises(InvalidRecord, match=r"the subkey .* use a tuple"):
        keys.checked_tag(thing, SETTINGS)


def test_what_msgpack_cannot_carry_is_refused():
    with pytest.raises(InvalidRecord, match=r"the value .* cannot be stored"):
        keys.checked_value("key", object(), SETTINGS)
    with pytest.raises(InvalidRecord, match=r"the key .* cannot be stored"):
        keys.checked_key_id(frozenset(), SETTINGS)


def test_sizes():
    assert keys.checked_value("key", b"x" * 98, SETTINGS) == b"\xc4\x62" + b"x" * 98
    with pytest.raises(InvalidRecord, match=r"the value of 101 bytes at 'key' is larger than the limit of 100 bytes"):
        keys.checked_value("key", b"x" * 99, SETTINGS)
    with pytest.raises(InvalidRecord, match="the key of 21 bytes"):
        keys.checked_key_id(b"x" * 21, SETTINGS)
    with pytest.raises(InvalidRecord, match="the subkey of 22 bytes"):
        keys.checked_tag("x" * 21, SETTINGS)


@pytest.mark.parametrize("time", [math.nan, None, "soon", True, 10**400, -(10**400)])
def test_expiration_must_be_a_time(time: object):
    with pytest.raises(InvalidRecord, match="is no time"):
        keys.check_expiration("key", time, SETTINGS, now=0.0)  # type: ignore[arg-type]


def test_expiration_must_be_to_come():
    keys.check_expiration("key", 11, SETTINGS, now=10.0)
    with pytest.raises(InvalidRecord, match=r"expired 2\.0 s ago"):
        keys.check_expiration("key", 8.0, SETTINGS, now=10.0)
    with pytest.raises(InvalidRecord, match="is to last 61 s, and nodes keep records for at most 60 s"):
        keys.check_expiration("key", 71.0, SETTINGS, now=10.0)
