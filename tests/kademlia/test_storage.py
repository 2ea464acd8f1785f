from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.kademlia import DictionaryValue, ExpiringStorage, RecordStorage

times = st.floats(0, 20)
stores = st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=3), times), max_size=60)


@given(stores, times)
def test_the_latest_expiration_wins_in_any_order(stores, now: float):
    storage: ExpiringStorage[int, bytes] = ExpiringStorage()
    model: dict[int, tuple[bytes, float]] = {}
    for key, value, expiration in stores:
        newer = expiration > now and (key not in model or expiration > model[key][1])
        assert bool(storage.store(key, value, expiration, now=now, size=len(value))) is newer
        if newer:
            model[key] = (value, expiration)
    assert {key: tuple(item) for key, item in storage.items(now)} == model
    assert storage.nbytes == sum(len(value) for value, _ in model.values())
    first = storage.first_to_expire()
    assert (first[1] if first else None) == min((item[1] for item in model.values()), default=None)


@given(stores, st.lists(times, max_size=10))
def test_nothing_is_seen_after_it_expired(stores, moments):
    storage: ExpiringStorage[int, bytes] = ExpiringStorage()
    for key, value, expiration in stores:
        storage.store(key, value, expiration, now=0.0)
    for now in sorted(moments):
        assert all(item is None or item.expiration_time > now for key in range(6) for item in [storage.get(key, now)])
        assert all(item.expiration_time > now for _, item in storage.items(now))
    storage.expire(math.inf)
    assert len(storage) == storage.nbytes == 0


@given(stores, st.integers(1, 4), st.integers(1, 8), st.booleans())
def test_bounds_hold(stores, max_count: int, max_bytes: int, evict: bool):
    storage: ExpiringStorage[int, bytes] = ExpiringStorage(max_count=max_count, max_bytes=max_bytes, evict=evict)
    for key, value, expiration in stores:
        storage.store(key, value, expiration, now=0.0, size=len(value))
        assert len(storage) <= max_count
        assert storage.nbytes <= max_bytes
        assert storage.nbytes == sum(len(item.value) for _, item in storage.items(0.0))


def test_a_full_storage_refuses_and_a_full_cache_evicts_what_expires_first():
    storage: ExpiringStorage[str, str] = ExpiringStorage(max_count=2)
    cache: ExpiringStorage[str, str] = ExpiringStorage(max_count=2, evict=True)
    for kept in (storage, cache):
        assert kept.store("a", "1", 10.0, now=0.0)
        assert kept.store("b", "2", 20.0, now=0.0)
    assert not storage.store("c", "3", 30.0, now=0.0)
    assert not cache.store("c", "3", 5.0, now=0.0)  # what expires even sooner makes nobody leave
    assert cache.store("c", "3", 30.0, now=0.0)
    assert {key for key, _ in storage.items(0.0)} == {"a", "b"}
    assert {key for key, _ in cache.items(0.0)} == {"b", "c"}
    assert storage.store("c", "3", 30.0, now=10.0)  # "a" has expired


def test_storing_one_key_for_ever_leaves_no_ghosts():
    storage: ExpiringStorage[str, int] = ExpiringStorage()
    for n in range(10_000):
        assert storage.store("key", n, 100.0 + n, now=0.0)
    assert len(storage._heap) < 50
    storage.expire(100.0 + 9_998)
    assert len(storage) == 1


def test_times_that_are_not_numbers_are_refused():
    storage: ExpiringStorage[str, int] = ExpiringStorage()
    assert not storage.store("key", 1, math.nan, now=0.0)
    assert storage.store("key", 1, math.inf, now=0.0)


record_stores = st.lists(
    st.tuples(st.integers(0, 2), st.none() | st.sampled_from([b"a", b"b", b"c"]), st.binary(max_size=3), times),
    max_size=50,
)


@given(record_stores)
def test_records_follow_the_rules_of_values_and_dictionaries(stores):
    storage = RecordStorage()
    model: dict[int, tuple[bytes, float] | dict[bytes, tuple[bytes, float]]] = {}
    for key, subkey, value, expiration in stores:
        old = model.get(key)
        previous = old.values() if isinstance(old, dict) else [old] if old else []
        lasts = max((item[1] for item in previous), default=0.0)
        if subkey is None:
            accepted = expiration > max(0.0, lasts)
            assert bool(storage.store(key, value, expiration, now=0.0)) is accepted
            if accepted:
                model[key] = (value, expiration)
            continue
        mine = old if isinstance(old, dict) else {}
        accepted = expiration > max(0.0, mine[subkey][1] if subkey in mine else -math.inf)
        accepted = accepted and (isinstance(old, dict) or expiration > lasts)
        assert bool(storage.store_subkey(key, subkey, value, expiration, now=0.0)) is accepted
        if accepted:
            model[key] = {**mine, subkey: (value, expiration)}
    for key, expected in model.items():
        found = storage.get(key, 0.0)
        assert found is not None
        if isinstance(expected, dict):
            assert isinstance(found.value, DictionaryValue)
            assert {subkey: tuple(item) for subkey, item in found.value.items(0.0)} == expected
            assert found.expiration_time == max(item[1] for item in expected.values())
        else:
            assert found == expected
    assert len(storage) == len(model)


@given(stores, stores)
def test_merging_dictionaries_is_the_same_either_way(left_stores, right_stores):
    def build(*lists):
        dictionary = DictionaryValue()
        for key, value, expiration in (item for items in lists for item in items):
            dictionary.store(bytes([key]), value, expiration, now=0.0)
        return dictionary

    def expirations(dictionary):
        return {subkey: item.expiration_time for subkey, item in dictionary.items(0.0)}

    one, other = build(left_stores), build(right_stores)
    one.merge(build(right_stores), now=0.0)
    other.merge(build(left_stores), now=0.0)
    assert expirations(one) == expirations(other) == expirations(build(left_stores, right_stores))
    assert one.latest_expiration_time == other.latest_expiration_time


def test_record_bounds():
    storage = RecordStorage(max_subkeys=2, max_record_bytes=10, max_bytes=15)
    assert not storage.store(1, bytes(11), 5.0, now=0.0)
    assert storage.store_subkey(2, b"a", b"1234", 5.0, now=0.0)
    assert not storage.store_subkey(2, b"b", b"123456", 5.0, now=0.0)  # the dictionary would be too large
    assert storage.store_subkey(2, b"b", b"1", 5.0, now=0.0)
    assert not storage.store_subkey(2, b"c", b"", 5.0, now=0.0)  # a subkey too many
    assert storage.nbytes == 7
    assert not storage.store(1, bytes(9), 5.0, now=0.0)  # the whole storage would be too large
    assert storage.store(1, bytes(8), 5.0, now=0.0)
    assert not storage.store_subkey(2, b"b", b"22", 6.0, now=0.0)
    found = storage.get(2, 0.0)
    assert found is not None
    assert isinstance(found.value, DictionaryValue)
    assert found.value.get(b"b", 0.0) == (b"1", 5.0)  # what could not be replaced is still there
    assert repr(storage) == "<RecordStorage 2 records, 15 bytes>"


def test_a_whole_dictionary_is_stored_subkey_by_subkey():
    storage = RecordStorage()
    storage.store_subkey(1, b"a", b"new", 9.0, now=0.0)
    dictionary = DictionaryValue()
    dictionary.store(b"a", b"old", 5.0, now=0.0)
    dictionary.store(b"b", b"b", 6.0, now=0.0)
    assert not storage.store_record(1, dictionary, 6.0, now=0.0)  # one of them was refused
    found = storage.get(1, 0.0)
    assert found is not None
    assert isinstance(found.value, DictionaryValue)
    assert dict(found.value.items(0.0)) == {b"a": (b"new", 9.0), b"b": (b"b", 6.0)}
    assert not storage.store_record(2, DictionaryValue(), 6.0, now=0.0)
