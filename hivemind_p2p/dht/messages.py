"""Between the DHT's messages and what they mean; everything that a peer sent is checked here. Pure.

Records travel as bytes under a tag (see ``keys``). A whole dictionary is one msgpack extension value; the expiration
beside it is that of its last subkey. Peer ids travel bare in hivemind's messages; ours tell addresses beside them, in
fields that hivemind ignores.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeAlias

from multiaddr import Multiaddr

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht.keys import DHTID, DICTIONARY_TAG, REGULAR_TAG, subkey_from
from hivemind_p2p.errors import ProtocolViolation
from hivemind_p2p.kademlia import SHA1, Contact, DictionaryValue, ValueWithExpiration, Verdict
from hivemind_p2p.kademlia.records import Record
from hivemind_p2p.transport.addresses import read_maddr, split_peer
from hivemind_p2p.wire import dht_pb2, msgpack
from hivemind_p2p.wire.peer_id import MAX_LENGTH, PeerID

_CACHED: Final = 2**14
_LONGEST_MADDR: Final = 512
"""Bytes; a name, a port, a relay and a peer id take less than 400."""
_REASONS: Final = frozenset(verdict.value for verdict in Verdict if not verdict)
PeerContact: TypeAlias = Contact[PeerID]
Addresses: TypeAlias = Mapping[PeerID, Sequence[Multiaddr]]


@dataclass(frozen=True)
class StoreItem:
    """One record to store, or one subkey of it."""

    key: DHTID
    tag: bytes
    value: bytes
    expiration_time: float
    in_cache: bool = False


@dataclass(frozen=True)
class Found:
    """What a peer knows of one key."""

    record: ValueWithExpiration[Record] | None
    nearest: Sequence[PeerContact]


@dataclass(frozen=True)
class FindAnswer:
    """What a peer knows of some keys. Keys whose value it left out for want of room are not in ``found``."""

    node_id: DHTID
    found: Mapping[DHTID, Found]
    addresses: Addresses = field(default_factory=dict)


def record_item(key: DHTID, item: ValueWithExpiration[Record], *, now: float, in_cache: bool = False) -> StoreItem:
    """A whole record as one item to store."""
    if isinstance(item.value, bytes):
        return StoreItem(key, REGULAR_TAG, item.value, item.expiration_time, in_cache)
    return StoreItem(key, DICTIONARY_TAG, pack_dictionary(item.value, now), item.expiration_time, in_cache)


def store_request(items: Sequence[StoreItem], peer: dht_pb2.NodeInfo, *, tell_nearest: int = 0) -> dht_pb2.StoreRequest:
    """The message that asks to store ``items``, and, ours, to tell so many of the nodes nearest to each key."""
    return dht_pb2.StoreRequest(
        keys=[SHA1.to_bytes(item.key) for item in items],
        subkeys=[item.tag for item in items],
        values=[item.value for item in items],
        expiration_time=[item.expiration_time for item in items],
        in_cache=[item.in_cache for item in items],
        peer=peer,
        tell_nearest=tell_nearest,
    )


def store_items(request: dht_pb2.StoreRequest) -> list[StoreItem]:
    """The items that a peer asks us to store.

    Raises:
        ProtocolViolation: the lists are not of one length, or a key is not an id.
    """
    columns = (request.keys, request.subkeys, request.values, request.expiration_time, request.in_cache)
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1:
        raise ProtocolViolation(f"a store request needs one subkey, value, time and flag per key, not {lengths}")
    return [
        StoreItem(_id(key), bytes(tag), bytes(value), expiration_time, in_cache)
        for key, tag, value, expiration_time, in_cache in zip(*columns, strict=True)
    ]


def store_response(verdicts: Sequence[Verdict], peer: dht_pb2.NodeInfo) -> dht_pb2.StoreResponse:
    """The answer to a store request; the reasons beside it are for our own nodes."""
    response = dht_pb2.StoreResponse(store_ok=map(bool, verdicts), peer=peer)
    if not all(verdicts):
        response.verdicts.extend(verdict.value for verdict in verdicts)
    return response


def store_verdicts(response: dht_pb2.StoreResponse, count: int) -> list[Verdict]:
    """What a peer says became of ``count`` items; it says nothing about those that its answer leaves out."""
    pairs = itertools.zip_longest(response.store_ok[:count], response.verdicts[:count], fillvalue=0)
    verdicts = [
        Verdict.STORED if ok else Verdict(reason) if reason in _REASONS else Verdict.UNKNOWN for ok, reason in pairs
    ]
    return verdicts + [Verdict.UNKNOWN] * (count - len(verdicts))


def nearest_told(response: dht_pb2.StoreResponse, items: Sequence[StoreItem], limit: int) -> dict[DHTID, list[DHTID]]:
    """The nodes that a peer told of beside its answer, by key; empty when it told none, as hivemind does.

    Raises:
        ProtocolViolation: it told them for other keys than it was asked about, or they are not ids.
    """
    if not response.nearest_node_ids:
        return {}
    keys, size = dict.fromkeys(item.key for item in items), SHA1.bits // 8
    if len(response.nearest_node_ids) != len(keys):
        raise ProtocolViolation(f"asked about {len(keys)} keys, told of {len(response.nearest_node_ids)}")
    return {
        key: [_id(raw[start : start + size]) for start in range(0, min(len(raw), limit * size), size)]
        for key, raw in zip(keys, response.nearest_node_ids, strict=True)
    }


def requested_keys(request: dht_pb2.FindRequest, limit: int) -> list[DHTID]:
    """The keys that a peer looks for.

    Raises:
        ProtocolViolation: too many, or one is not an id.
    """
    if len(request.keys) > limit:
        raise ProtocolViolation(f"a find request for {len(request.keys)} keys is above the limit of {limit}: split it")
    return [_id(key) for key in request.keys]


def find_result(found: Found, *, now: float, room: int) -> dht_pb2.FindResult:
    """What we know of one key; the value only if it has at most ``room`` bytes."""
    result = dht_pb2.FindResult(
        nearest_node_ids=[SHA1.to_bytes(contact.node_id) for contact in found.nearest],
        nearest_peer_ids=[contact.peer.to_bytes() for contact in found.nearest],
    )
    if found.record is None:
        return result
    value, expiration_time = found.record
    packed = value if isinstance(value, bytes) else pack_dictionary(value, now)
    if len(packed) > room:
        result.value_omitted = True
        return result
    result.type = dht_pb2.FOUND_REGULAR if isinstance(value, bytes) else dht_pb2.FOUND_DICTIONARY
    result.value = packed
    result.expiration_time = expiration_time
    return result


def find_answer(response: dht_pb2.FindResponse, keys: Sequence[DHTID], settings: DHTSettings, now: float) -> FindAnswer:
    """What a peer answered to a request for ``keys``. Records that are garbage or have expired are not there.

    Raises:
        ProtocolViolation: the answer is for other than these keys, or names no node id.
    """
    if len(response.results) != len(keys):
        raise ProtocolViolation(f"asked for {len(keys)} keys, got {len(response.results)} results")
    sender = node_id_in(response.peer)
    if sender is None:
        raise ProtocolViolation("the answer names no node id")
    found: dict[DHTID, Found] = {}
    peers: dict[bytes, PeerID | None] = {}
    for key, result in zip(keys, response.results, strict=True):
        if not result.value_omitted:
            found[key] = Found(_record(result, settings, now), _nearest(result, settings.bucket_size, peers))
    if keys and not found:  # a single value that does not fit is not there at all
        found[keys[0]] = Found(None, _nearest(response.results[0], settings.bucket_size, peers))
    named = {contact.peer for each in found.values() for contact in each.nearest}
    addresses = {}
    for entry in itertools.islice(response.nearest_peer_addresses, 4 * len(named) + 1):
        peer = _peer_id(entry.peer_id)
        if peer in named:
            addresses[peer] = maddrs_in(entry.maddrs, settings.max_addresses)
    return FindAnswer(sender, found, addresses)


def node_info(node_id: DHTID | None, maddrs: Iterable[Multiaddr] = ()) -> dht_pb2.NodeInfo:
    """Who we are; None is a client, who says nothing so that nobody takes it into a table."""
    if node_id is None:
        return dht_pb2.NodeInfo()
    return dht_pb2.NodeInfo(node_id=SHA1.to_bytes(node_id), maddrs=[maddr.to_bytes() for maddr in maddrs])


def node_id_in(info: dht_pb2.NodeInfo) -> DHTID | None:
    """The node id that a peer gave itself; None for a client.

    Raises:
        ProtocolViolation: it is not an id.
    """
    return _id(info.node_id) if info.node_id else None


def peer_addresses(addresses: Addresses) -> list[dht_pb2.PeerAddresses]:
    """Addresses beside peer ids, as they travel."""
    return [
        dht_pb2.PeerAddresses(peer_id=peer.to_bytes(), maddrs=[maddr.to_bytes() for maddr in maddrs])
        for peer, maddrs in addresses.items()
        if maddrs
    ]


def maddrs_in(raw: Iterable[bytes], limit: int) -> list[Multiaddr]:
    """The addresses among what a peer sent as such, at most ``limit``."""
    return [maddr for maddr in map(_maddr, itertools.islice(raw, limit)) if maddr is not None]


def pack_dictionary(dictionary: DictionaryValue, now: float) -> bytes:
    """A dictionary as it travels."""
    items = [(subkey_from(tag), item.value, item.expiration_time) for tag, item in dictionary.items(now)]
    latest = max((expiration_time for _, _, expiration_time in items), default=-math.inf)
    return msgpack.dumps(msgpack.PackedDictionary(math.inf, latest, items))


def unpack_dictionary(raw: bytes, settings: DHTSettings, now: float) -> DictionaryValue:
    """A dictionary that a peer sent, without what has expired.

    Raises:
        ValueError: it is not a dictionary, has garbage inside, or is above our bounds.
    """
    packed = msgpack.loads(raw)
    if not isinstance(packed, msgpack.PackedDictionary):
        raise ValueError("not a dictionary value")
    if len(packed.items) > settings.max_subkeys:
        raise ValueError(f"{len(packed.items)} subkeys are above the limit of {settings.max_subkeys}")
    dictionary = DictionaryValue(max_count=settings.max_subkeys, max_bytes=settings.max_record_bytes)
    for subkey, value, expiration_time in packed.items:
        tag = msgpack.dumps(subkey)
        check_tag(tag, settings)
        if not isinstance(value, bytes) or not isinstance(expiration_time, int | float):
            raise ValueError("a dictionary value holds [subkey, bytes, time] only")
        dictionary.store(tag, value, float(expiration_time), now=now)
    return dictionary


def check_tag(tag: bytes, settings: DHTSettings) -> bytes:
    """The one way to write the subkey of a tag that a peer sent.

    Raises:
        ValueError: it is none.
    """
    if len(tag) > settings.max_key_bytes:
        raise ValueError(f"a subkey of {len(tag)} bytes is above the limit of {settings.max_key_bytes}")
    return msgpack.dumps(subkey_from(tag))


def _record(result: dht_pb2.FindResult, settings: DHTSettings, now: float) -> ValueWithExpiration[Record] | None:
    if result.type == dht_pb2.FOUND_REGULAR:
        if result.expiration_time > now and len(result.value) <= settings.max_record_bytes:
            return ValueWithExpiration(bytes(result.value), result.expiration_time)
    elif result.type == dht_pb2.FOUND_DICTIONARY:
        try:
            dictionary = unpack_dictionary(result.value, settings, now)
        except ValueError:
            return None
        if len(dictionary):
            return ValueWithExpiration(dictionary, dictionary.latest_expiration_time)
    return None


def _nearest(result: dht_pb2.FindResult, limit: int, peers: dict[bytes, PeerID | None]) -> list[PeerContact]:
    """The contacts of a result; ``peers`` keeps what was read before, since results name the same peers."""
    contacts = []
    for node_id, peer_id in itertools.islice(
        zip(result.nearest_node_ids, result.nearest_peer_ids, strict=False), limit
    ):
        if peer_id not in peers:
            peers[peer_id] = _peer_id(peer_id)
        peer = peers[peer_id]
        if peer is not None and len(node_id) * 8 == SHA1.bits:
            contacts.append(Contact(SHA1.from_bytes(node_id), peer))
    return contacts


def _id(raw: bytes) -> DHTID:
    try:
        return SHA1.from_bytes(raw)
    except ValueError as error:
        raise ProtocolViolation(str(error)) from None


def _maddr(raw: bytes) -> Multiaddr | None:
    return _short_maddr(raw) if len(raw) <= _LONGEST_MADDR else None  # what is kept for reuse must be small


@lru_cache(_CACHED)  # every answer names many addresses, mostly the same ones, and reading one is slow
def _short_maddr(raw: bytes) -> Multiaddr | None:
    try:
        maddr = read_maddr(raw)
        split_peer(maddr)  # it may end in what is no peer id
        return maddr
    except ValueError:
        return None


def _peer_id(raw: bytes) -> PeerID | None:
    return _short_peer_id(raw) if len(raw) <= MAX_LENGTH else None


@lru_cache(_CACHED)  # likewise; and ids that are one object are equal at a glance
def _short_peer_id(raw: bytes) -> PeerID | None:
    try:
        return PeerID(raw)
    except ValueError:
        return None
