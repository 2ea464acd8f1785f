from __future__ import annotations

import hashlib
import itertools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind_p2p.kademlia import SHA1, Contact, KeySpace, RoutingTable

BYTE = KeySpace("one byte", 8, lambda data: hashlib.sha1(data).digest()[:1])
OWN = 0b10110010


def contact(node_id: int) -> Contact[str]:
    return Contact(node_id, f"peer{node_id}")


def small_table(bucket_size: int = 2, depth_modulo: int = 2) -> RoutingTable[str]:
    return RoutingTable(Contact(OWN, "own"), space=BYTE, bucket_size=bucket_size, depth_modulo=depth_modulo)


def check_invariants(table: RoutingTable[str]) -> None:
    edges = [(bucket.lower, bucket.upper) for bucket in table.buckets]
    assert edges[0][0] == 0
    assert edges[-1][1] == table.space.size
    assert all(left[1] == right[0] for left, right in itertools.pairwise(edges))
    peers = []
    for bucket in table.buckets:
        assert bucket.upper - bucket.lower == table.space.size >> bucket.depth
        assert len(bucket.contacts) <= table.bucket_size
        assert len(bucket.replacements) <= table.bucket_size
        assert not bucket.contacts.keys() & bucket.replacements.keys()
        assert bucket.being_pinged <= bucket.contacts.keys()
        assert len(bucket.contacts) == table.bucket_size or not bucket.replacements
        for node_id, peer in [*bucket.contacts.items(), *bucket.replacements.items()]:
            assert bucket.lower <= node_id < bucket.upper
            assert table.id_of(peer) == node_id
            peers.append(peer)
    assert len(set(peers)) == len(peers) == len(table._ids)
    assert table.own.node_id not in table


steps = st.lists(st.tuples(st.sampled_from(["heard", "remove"]), st.integers(0, 255), st.integers(0, 60)), max_size=400)


@given(steps, st.integers(1, 4), st.integers(1, 5))
@settings(deadline=None)
def test_whatever_happens_the_table_is_a_partition_within_bounds(steps, bucket_size: int, depth_modulo: int):
    table = small_table(bucket_size, depth_modulo)
    for now, (what, node_id, peer) in enumerate(steps):
        if what == "heard":
            to_ping = table.heard_from(Contact(node_id, f"peer{peer}"), float(now))
            assert to_ping is None or table.id_of(to_ping.peer) == to_ping.node_id
        else:
            table.remove(node_id)
    check_invariants(table)


@given(st.sets(st.integers(0, 255), max_size=120), st.integers(0, 255), st.integers(1, 30))
def test_nearest_are_the_true_nearest_in_order(ids: set[int], target: int, count: int):
    table = small_table(bucket_size=4)
    for node_id in ids:
        table.heard_from(contact(node_id), 0.0)
    everyone = sorted((known.node_id for known in table), key=lambda node_id: node_id ^ target)
    assert [found.node_id for found in table.nearest(target, count)] == everyone[:count]
    if everyone:
        rest = [found.node_id for found in table.nearest(target, count, exclude={everyone[0]})]
        assert rest == everyone[1 : count + 1]


@given(st.integers(0, 1 << 30).map(Random))
@settings(max_examples=10, deadline=None)
def test_a_table_knows_all_of_its_own_neighbourhood(random):
    ids = [random.getrandbits(160) for _ in range(500)]
    own = random.getrandbits(160)
    table = RoutingTable(Contact(own, "own"), space=SHA1)
    for node_id in ids:
        table.heard_from(contact(node_id), 0.0)
    truth = sorted(ids, key=lambda node_id: node_id ^ own)[:20]
    assert [found.node_id for found in table.nearest(own, 20)] == truth


def full_far_bucket(table: RoutingTable[str]) -> list[int]:
    """Fill buckets until one that may not split is full; the ids in it."""
    for node_id in (0b10000000, 0b10000001, *range(4)):
        table.heard_from(contact(node_id), 0.0)
    bucket = table.bucket_of(0)
    assert list(bucket.contacts) == [0, 1]
    assert not table._may_split(bucket)
    return list(bucket.replacements)


def test_a_full_bucket_keeps_old_contacts_and_asks_to_ping_the_oldest():
    table = small_table()
    assert full_far_bucket(table) == [2, 3]
    bucket = table.bucket_of(0)
    bucket.being_pinged.clear()
    assert table.heard_from(contact(4), 1.0) == contact(0)
    assert table.heard_from(contact(5), 1.0) == contact(1)
    assert table.heard_from(contact(6), 1.0) is None  # both are being pinged already
    assert table.heard_from(contact(0), 2.0) is None  # it answered, and is now the most recent
    assert list(bucket.contacts) == [1, 0]
    table.remove(1)  # it did not
    assert list(bucket.contacts) == [0, 6]  # the newest replacement took its place
    check_invariants(table)


def test_buckets_split_around_ourselves_and_down_to_the_modulus():
    table = small_table(bucket_size=2, depth_modulo=3)
    for node_id in range(0, 256, 4):
        table.heard_from(contact(node_id), 0.0)
    own = table.bucket_of(OWN)
    assert own.depth >= 5
    assert {bucket.depth for bucket in table.buckets if bucket is not own and bucket.depth < 5} <= {3, 4}


def test_we_are_never_in_our_own_table():
    table = small_table()
    assert table.heard_from(Contact(OWN, "somebody"), 0.0) is None
    assert table.heard_from(Contact(1, "own"), 0.0) is None
    assert len(table) == 0


def test_a_peer_is_in_the_table_under_its_latest_id_only():
    table = small_table(bucket_size=20)
    for node_id in range(50):
        table.heard_from(Contact(node_id, "liar"), 0.0)
    assert list(table) == [Contact(49, "liar")]


def test_an_id_belongs_to_whom_had_it_first_until_that_one_fails():
    table = small_table()
    table.heard_from(Contact(7, "first"), 0.0)
    assert table.heard_from(Contact(7, "second"), 1.0) == Contact(7, "first")
    assert list(table) == [Contact(7, "first")]
    table.remove(7)
    assert table.heard_from(Contact(7, "second"), 2.0) is None
    assert list(table) == [Contact(7, "second")]


def test_an_id_of_a_replacement_belongs_to_whom_has_it_last():
    table = small_table()
    full_far_bucket(table)
    table.heard_from(Contact(3, "second"), 1.0)
    assert table.bucket_of(3).replacements == {2: "peer2", 3: "second"}
    assert table.id_of("peer3") is None


def test_stale_buckets_are_those_from_which_nobody_was_heard():
    table = small_table()
    for node_id in (1, 2, 200, 250):
        table.heard_from(contact(node_id), 10.0)
    table.heard_from(contact(1), 30.0)
    stale = table.stale_buckets(20.0)
    assert table.bucket_of(1) not in stale
    assert table.bucket_of(250) in stale


def test_repr():
    table = small_table()
    table.heard_from(contact(3), 0.0)
    assert repr(table).endswith("1 contacts in 1 buckets>")
    assert repr(table.buckets[0]) == "<Bucket depth=0 1+0 contacts>"


@pytest.mark.parametrize("missing", [0, 100])
def test_removing_a_stranger_is_nothing(missing: int):
    table = small_table()
    table.remove(missing)
    assert len(table) == 0


def test_whether_it_knows_everybody_near():
    table = small_table()
    assert not table.knows_all_near(0, 1)  # it knows nobody
    for node_id in (OWN ^ 1, OWN ^ 64):
        table.heard_from(contact(node_id), 0.0)
    assert table.knows_all_near(0, 1)
    assert table.knows_all_near(0, 100)
    for node_id in range(0, 256, 16):
        table.heard_from(contact(node_id), 0.0)
    assert not table.knows_all_near(0, 1)  # many there found no room


@pytest.mark.parametrize("size", [10, 20, 21, 40, 150, 400])
def test_how_many_nodes_there_are(size: int):
    random = Random(size)
    nodes = [Contact(random.getrandbits(160), f"peer {n}") for n in range(size)]
    table = RoutingTable(Contact(random.getrandbits(160), "own"), space=SHA1)
    for each in nodes:
        table.heard_from(each, 0.0)
    assert size / 3 < table.estimated_size() < 3 * size
    assert size > 20 or table.knows_all_near(nodes[0].node_id, 5)
    near = sorted(nodes, key=lambda each: each.node_id ^ table.own.node_id)[: max(20, size // 4)]
    few = RoutingTable(table.own, space=SHA1)
    for each in near:
        few.heard_from(each, 0.0)
    assert size < 150 or not few.knows_all_near(table.own.node_id, 5)
