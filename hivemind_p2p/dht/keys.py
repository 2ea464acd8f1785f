"""From what users say to what travels: keys to ids, subkeys to tags, values to bytes, and the bounds of a record.

A key's id is the SHA-1 of its msgpack form, or of itself when it is ``bytes``. A record's *tag* says which part of a
key it is: ``REGULAR_TAG`` (msgpack of None) is the one value of a key without subkeys, ``DICTIONARY_TAG`` (no bytes)
all subkeys at once, anything else the msgpack form of one subkey.
"""

from __future__ import annotations

import math
from typing import Any, Final, TypeAlias

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.errors import InvalidRecord
from hivemind_p2p.kademlia import SHA1
from hivemind_p2p.wire import msgpack
from hivemind_p2p.wire.peer_id import PeerID

DHTID: TypeAlias = int
"""An id of a node or key in the space of SHA-1."""
DHTKey: TypeAlias = Any
"""Anything hashable that msgpack can carry."""
Subkey: TypeAlias = Any
"""Likewise; None stands for no subkey."""
DHTValue: TypeAlias = Any
"""Anything that msgpack can carry."""

REGULAR_TAG: Final = msgpack.dumps(None)
DICTIONARY_TAG: Final = b""
_IN_A_DICTIONARY: Final = 1
"""Extension values that a subkey is inside of when its whole dictionary travels."""


def key_id(key: DHTKey) -> DHTID:
    """The id of a key.

    Raises:
        InvalidRecord: msgpack cannot carry the key.
    """
    return SHA1.hash(key if isinstance(key, bytes) else _pack("key", key))


def node_id_of(peer_id: PeerID) -> DHTID:
    """The id of a node that chose none: that of its peer id, so that looking it up finds the node."""
    return SHA1.hash(peer_id.to_bytes())


def checked_key_id(key: DHTKey, settings: DHTSettings) -> DHTID:
    """The id of a key that a caller gave.

    Raises:
        InvalidRecord: it is not hashable, msgpack cannot carry it, or it is too long.
    """
    _check_hashable("key", key)
    packed = key if isinstance(key, bytes) else _pack("key", key)
    _check_size("key", key, packed, settings.max_key_bytes, "use a shorter one, or its digest")
    return key_id(key)


def checked_tag(subkey: Subkey, settings: DHTSettings) -> bytes:
    """The tag of a subkey that a caller gave; None is a regular value.

    Raises:
        InvalidRecord: as for keys.
    """
    _check_hashable("subkey", subkey)
    packed = _pack("subkey", subkey, inside=_IN_A_DICTIONARY)
    _check_size("subkey", subkey, packed, settings.max_key_bytes, "use a shorter one, or its digest")
    return packed


def checked_value(key: DHTKey, value: DHTValue, settings: DHTSettings) -> bytes:
    """The bytes of a value that a caller gave.

    Raises:
        InvalidRecord: msgpack cannot carry it, or it is too large.
    """
    packed = _pack("value", value)
    check_size(key, packed, settings)
    return packed


def check_size(key: DHTKey, packed: bytes, settings: DHTSettings) -> None:
    """Refuse a value, as it travels, that nobody would store.

    Raises:
        InvalidRecord: it is too large.
    """
    advice = "keep large things elsewhere and store where they are"
    _check_size("value", key, packed, settings.max_record_bytes, advice)


def check_expiration(key: DHTKey, expiration_time: float, settings: DHTSettings, *, now: float) -> None:
    """Refuse what nobody would store.

    Raises:
        InvalidRecord: the time is not a number, has passed, or is too far away.
    """
    if not _is_time(expiration_time):
        raise InvalidRecord(
            f"the expiration time of {key!r:.80} is {expiration_time!r:.80}, which is no time: give seconds of Unix "
            "time, such as get_dht_time() + 60"
        )
    if expiration_time <= now:
        raise InvalidRecord(
            f"the record of {key!r:.80} expired {now - expiration_time:.1f} s ago: give a time in the future, such as "
            "get_dht_time() + 60"
        )
    if expiration_time > now + settings.max_lifetime:
        raise InvalidRecord(
            f"the record of {key!r:.80} is to last {expiration_time - now:.4g} s, and nodes keep records for at most "
            f"{settings.max_lifetime:g} s: give an earlier time, and store it again before that"
        )


def subkey_from(tag: bytes) -> Subkey:
    """The subkey of a tag that a peer sent.

    Raises:
        ValueError: it is not msgpack, or not hashable, or too deep to travel in a dictionary.
    """
    subkey = msgpack.loads(tag, inside=_IN_A_DICTIONARY)
    try:
        hash(subkey)
    except TypeError as error:
        raise ValueError(f"not a subkey: {error}") from None
    return subkey


def _is_time(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:  # an integer that no float holds
        return False


def _check_hashable(what: str, thing: object) -> None:
    try:
        hash(thing)
    except TypeError as error:
        raise InvalidRecord(
            f"the {what} {thing!r:.80} cannot be used ({error}): use a tuple instead of a list"
        ) from None


def _pack(what: str, thing: object, *, inside: int = 0) -> bytes:
    try:
        return msgpack.dumps(thing, inside=inside)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRecord(
            f"the {what} {thing!r:.80} cannot be stored ({error}): use numbers, text, bytes, and lists, tuples and "
            "dictionaries of them"
        ) from None


def _check_size(what: str, named: object, packed: bytes, limit: int, advice: str) -> None:
    if len(packed) > limit:
        raise InvalidRecord(
            f"the {what} of {len(packed)} bytes at {named!r:.80} is larger than the limit of {limit} bytes: {advice}"
        )
