"""What a node lets in, keeps and drops, and what it says of that."""

from __future__ import annotations

import trio

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import CompositeValidator
from hivemind_p2p.dht.keys import key_id
from hivemind_p2p.dht.messages import StoreItem
from hivemind_p2p.dht.protocol import STORE
from hivemind_p2p.dht.records import Records
from hivemind_p2p.kademlia import SHA1, Verdict
from hivemind_p2p.wire import dht_pb2, msgpack
from hivemind_p2p.wire.peer_id import PeerID
from tests.dht.swarm import Swarm, address, holders, now

PEERS = [PeerID(b"\x00\x01" + bytes([n])) for n in range(9)]
SMALL = DHTSettings(max_stored_bytes=1000, max_stored_records=1000, max_record_bytes=200, max_peer_share=0.2)


def item(key: int, size: int = 100, expiration_time: float = 50.0, **options) -> StoreItem:
    return StoreItem(key, b"\xc0", bytes(size), expiration_time, **options)


def records(settings: DHTSettings = SMALL) -> Records:
    return Records(settings, lambda: 0.0, CompositeValidator())


def test_cached_copies_make_room_for_what_is_stored():
    kept = records()
    for n in range(8):
        assert kept.accept(item(n, expiration_time=10.0 + n, in_cache=True), PEERS[0])
    for n in range(4):
        assert kept.accept(item(100 + n), None)
    assert kept.storage.nbytes + kept.cache.nbytes <= 1000
    assert [key for key, _ in kept.cache.items(0.0)] == [2, 3, 4, 5, 6, 7]  # the first to expire have gone
    for n in range(4, 12):
        verdict = kept.accept(item(100 + n), None)
        assert verdict is (Verdict.STORED if n < 10 else Verdict.NO_ROOM)
    assert len(kept.storage) == 10
    assert len(kept.cache) == 0
    assert kept.accept(item(1, in_cache=True), None) is Verdict.NO_ROOM
    assert repr(kept) == "<Records: 10 stored, 0 cached>"


def test_a_cached_dictionary_hides_nothing_that_is_stored():
    kept = records()
    for name, expiration_time, in_cache in (
        ("x", 40.0, True),
        ("y", 60.0, True),
        ("y", 50.0, False),
        ("z", 50.0, False),
    ):
        subkey = StoreItem(1, msgpack.dumps(name), f"{name} {in_cache}".encode(), expiration_time, in_cache)
        assert kept.accept(subkey, PEERS[0])
    dictionary, expiration_time = kept.local(1)
    assert {msgpack.loads(tag): entry for tag, entry in dictionary.items(0.0)} == {
        "x": (b"x True", 40.0), "y": (b"y True", 60.0), "z": (b"z False", 50.0)
    }  # fmt: skip
    assert expiration_time == 60.0
    assert len(kept.storage.get(1, 0.0).value) == len(kept.cache.get(1, 0.0).value) == 2  # neither was written to


def test_no_peer_takes_the_room_of_all():
    kept = records()
    flood = [kept.accept(item(n), PEERS[0]) for n in range(20)]
    assert flood == [Verdict.STORED] * 6 + [Verdict.OVER_SHARE] * 14
    for peer in PEERS[1:3]:  # the others find room: two records each are their share
        assert [kept.accept(item(key_id(f"{peer} {n}"), 99), peer) for n in range(2)] == [Verdict.STORED] * 2
    assert kept.accept(item(999), PEERS[5]) is Verdict.NO_ROOM


def test_what_was_replaced_is_nobodys_share_any_more():
    kept = records(DHTSettings(max_stored_records=4, max_peer_share=0.25))
    for n in range(100):  # values and dictionaries in turn, each in the place of the one before
        tag = msgpack.dumps(None if n % 2 else n)
        assert kept.accept(StoreItem(1, tag, b"theirs", 50.0 + n), PEERS[0])
    assert repr(kept._shares) == "<Shares of 1 owners in 1 entries>"
    for n in range(2):
        assert kept.accept(item(2 + n), PEERS[1 + n])
    assert kept.accept(item(4), PEERS[0]) is Verdict.OVER_SHARE
    assert kept.accept(item(1, expiration_time=200.0), None)  # ours now
    assert kept.accept(item(4), PEERS[0]) is Verdict.STORED


def test_every_verdict():
    kept = records()
    assert kept.accept(item(1, expiration_time=20.0), None) is Verdict.STORED
    assert kept.accept(item(1, expiration_time=20.0), None) is Verdict.NOT_NEWER
    assert kept.accept(item(2, expiration_time=-1.0), None) is Verdict.EXPIRED
    assert kept.accept(item(2, expiration_time=float("nan")), None) is Verdict.EXPIRED
    assert kept.accept(item(2, 201), None) is Verdict.TOO_LARGE
    assert kept.accept(item(2, expiration_time=1e9), None) is Verdict.TOO_LASTING
    assert kept.accept(item(2, expiration_time=float("inf")), None) is Verdict.TOO_LASTING
    assert kept.accept(StoreItem(2, b"\xc1", b"", 5.0), None) is Verdict.MALFORMED
    assert kept.accept(StoreItem(2, b"", b"garbage", 5.0), None) is Verdict.MALFORMED
    assert kept.accept(StoreItem(2, b"\x01", bytes(150), 5.0), None) is Verdict.STORED
    assert kept.accept(StoreItem(2, b"\x02", bytes(60), 5.0), None) is Verdict.TOO_LARGE  # the dictionary would be


async def test_a_full_node_says_so_and_others_take_the_record(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(4, DHTSettings(num_replicas=2, cache_on_store=False))
    full = min(nodes, key=lambda node: node.node_id ^ key_id("key"))
    full.protocol.storage._records.max_count = 0
    writer = max(nodes, key=lambda node: node.node_id ^ key_id("key"))
    assert await writer.store("key", 1, now() + 60)
    nearest = sorted(nodes, key=lambda node: node.node_id ^ key_id("key"))
    assert holders(nearest, key_id("key")) == nearest[1:3]


async def test_the_reason_travels_and_hivemind_does_without(autojump_clock, swarm: Swarm):
    node = await swarm.node()
    rpc = await swarm.rpc()
    await rpc.network.connect(address(node))

    async def store(times: list[float]) -> dht_pb2.StoreResponse:
        keys = [SHA1.to_bytes(key_id(f"key {n}")) for n in range(len(times))]
        columns = {"subkeys": [b"\xc0"] * len(times), "values": [msgpack.dumps(1)] * len(times)}
        request = dht_pb2.StoreRequest(keys=keys, expiration_time=times, in_cache=[False] * len(times), **columns)
        return await rpc.call(node.protocol.own.peer, STORE, request, dht_pb2.StoreResponse, timeout=3)

    response = await store([now() + 60] * 2)
    assert (list(response.store_ok), list(response.verdicts)) == ([True, True], [])
    response = await store([now() - 60, now() + 90])
    assert list(response.store_ok) == [False, True]
    assert list(response.verdicts) == [Verdict.EXPIRED.value, Verdict.STORED.value]


async def test_a_flood_does_not_keep_others_out_and_ends_nothing(autojump_clock, swarm: Swarm):
    node = await swarm.node(DHTSettings(max_stored_records=100, max_peer_share=0.1, cache_on_store=False))
    await node.store("ours", 1, now() + 600)
    flooder = await swarm.node(DHTSettings(cache_on_store=False))
    for n in range(30):
        await flooder.store_many([f"{n} {m}" for m in range(20)], [0] * 20, now() + 3600, exclude_self=True)
    assert len(node.protocol.storage) <= 60
    writer = await swarm.node()
    assert await writer.store("theirs", 2, now() + 60, exclude_self=True)
    assert (await node.get("theirs", latest=True)).value == 2
    assert (await node.get("ours", latest=True)).value == 1
    await trio.sleep(3601)
    assert await flooder.store("again", 1, now() + 60, exclude_self=True)
