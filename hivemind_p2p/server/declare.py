"""Experts in the DHT: declared so that clients find them, withdrawn so that they stop.

What is stored where is hivemind 1.1's. A uid leads to the peer that serves it, as base58 text; every place of the grid
(:func:`~hivemind_p2p.wire.expert_uid.grid_entries`) leads to ``(uid, peer)`` of one expert there.

**Replicas.** Several servers may serve one uid. In hivemind's records the last of them to declare it stands for all;
beside them, under a key that hivemind's readers do not know (:func:`~hivemind_p2p.wire.expert_uid.replicas_key`), each
server has an entry of its own, by its peer id: ``{"updates": n}``, the optimizer steps that its replica has made.

**Withdrawing.** A DHT forgets nothing before it expires, and of two records the one that expires later is the newer. So
to withdraw is to write over our own records with ones that expire a moment later: None, which hivemind itself writes
for "nothing here" and whose readers, like ours, pass over. It is not refused, and a server that takes the uid over wins
with its first declaration, because that expires later still. Three things it must not do: touch what another server has
declared since; hide another replica, or a row of the grid in which others still live (their place is given to one of
them instead); outlive what it withdraws by more than that moment. What it cannot do: reach into the caches of peers
that have looked us up. They may call us until their copy expires, and are told that nobody serves the uid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, overload

from hivemind_p2p.dht import DHTNode
from hivemind_p2p.errors import InvalidUID
from hivemind_p2p.kademlia import ValueWithExpiration
from hivemind_p2p.sync import DHT, PortalFuture
from hivemind_p2p.wire.expert_uid import UID_DELIMITER, check_uid, grid_entries, is_valid_uid, replicas_key
from hivemind_p2p.wire.peer_id import PeerID

_A_MOMENT: Final = 0.001
"""Seconds by which a withdrawal outlives what it withdraws."""
_SOON: Final = 1.0
"""What expires within so many seconds need not be withdrawn."""

_Place = tuple[str, int | str | None]
"""A key and its subkey."""
_Records = dict[_Place, Any]
_Declared = dict[Any, bool]


@overload
def declare_experts(dht: DHT, uids: Sequence[str], expiration_time: float, wait: Literal[True] = ...) -> _Declared: ...
@overload
def declare_experts(
    dht: DHT, uids: Sequence[str], expiration_time: float, wait: Literal[False]
) -> PortalFuture[_Declared]: ...
def declare_experts(
    dht: DHT, uids: Sequence[str], expiration_time: float, wait: bool = True
) -> _Declared | PortalFuture[_Declared]:
    """Tell the swarm that the peer of ``dht`` serves these experts; again before it expires, or they are forgotten.

    :class:`~hivemind_p2p.Server` does this for its own experts.

    Args:
        uids: a list of expert uids.
        expiration_time: Unix time in seconds.
        wait: otherwise a future is returned at once.

    Returns:
        For each stored uid, and ``(prefix, coordinate)`` of the grid, whether any node accepted it.

    Raises:
        InvalidUID: one of them is no uid.
        InvalidRecord: the time has passed already.
    """
    if isinstance(uids, str):
        raise InvalidUID(f"declare_experts takes a list of uids; write [{uids!r}]")
    records = declaration([check_uid(uid) for uid in uids], dht.peer_id)

    async def declare(_: DHT, node: DHTNode) -> _Declared:
        return await store_records(node, records, expiration_time)

    return dht.run_coroutine(declare, return_future=not wait)


def declaration(uids: Iterable[str], peer_id: PeerID, updates: Mapping[str, int] | None = None) -> _Records:
    """What is stored for experts of a peer: values by key and subkey.

    Where two experts share a place of the grid, the last one is named there.

    Args:
        updates: optimizer steps that our replicas have made, by uid.
    """
    records: _Records = {}
    for uid in uids:
        records[uid, None] = peer_id.base58
        records[replicas_key(uid), peer_id.base58] = {"updates": (updates or {}).get(uid, 0)}
        for prefix, coordinate in grid_entries(uid):
            records[prefix, coordinate] = (uid, peer_id.base58)
    return records


async def store_records(node: DHTNode, records: _Records, expiration_time: float | Sequence[float]) -> _Declared:
    """Store them all, which expire at one time or each at its own.

    Returns:
        For each key, or key and subkey, whether any node accepted it.
    """
    if not records:
        return {}
    keys, subkeys = zip(*records, strict=True)
    return await node.store_many(keys, list(records.values()), expiration_time, subkeys)


async def withdraw_experts(node: DHTNode, uids: Iterable[str], peer_id: PeerID) -> _Declared:
    """Withdraw what :func:`declare_experts` has declared for this peer.

    Returns:
        For what was found to be ours and was written over, whether any node accepted it.
    """
    ours = declaration(uids, peer_id)
    found = await node.get_many({key for key, _ in ours}, sufficient_expiration_time=float("inf"))
    soon = node.protocol.clock() + _SOON
    over = {place: new for place, new in withdrawal(ours, found, peer_id).items() if new.expiration_time > soon}
    records = {place: new.value for place, new in over.items()}
    return await store_records(node, records, [new.expiration_time for new in over.values()])


def withdrawal(
    ours: _Records, found: dict[Any, ValueWithExpiration[Any] | None], peer_id: PeerID
) -> dict[_Place, ValueWithExpiration[Any]]:
    """What to write over our records.

    Args:
        ours: the :func:`declaration` of the experts to withdraw.
        found: what the DHT holds now under each key.
        peer_id: who we are.
    """
    uids = {key for key, subkey in ours if subkey is None}
    heirs = {uid: heir for uid in uids if (heir := _heir(found.get(replicas_key(uid)), peer_id)) is not None}
    places = sorted(ours, key=lambda place: place[0].count(UID_DELIMITER), reverse=True)
    others = {key: _others(entry, uids, peer_id) for key, entry in found.items()}
    over: dict[_Place, ValueWithExpiration[Any]] = {}
    for key, subkey in places:  # the longest prefixes first: what stays there stays in the shorter ones
        entry = found.get(key)
        if subkey is not None and entry is not None:
            entry = _parts(entry).get(subkey)
        if entry is None:
            continue
        until = entry.expiration_time + _A_MOMENT
        if subkey is None:
            if entry.value == peer_id.base58:
                over[key, None] = ValueWithExpiration(heirs.get(key), until)
        elif subkey == peer_id.base58:
            if entry.value is not None:
                over[key, subkey] = ValueWithExpiration(None, until)
        elif isinstance(subkey, int) and _is_ours(entry.value, uids, peer_id):
            uid = entry.value[0]
            survivors = others.get(f"{key}{subkey}{UID_DELIMITER}", {})
            value = (uid, heirs[uid]) if uid in heirs else next(iter(survivors.values()), None)
            over[key, subkey] = ValueWithExpiration(value, until)
            if value is not None:
                others[key][subkey] = value
    return over


def _parts(entry: ValueWithExpiration[Any] | None) -> dict[Any, ValueWithExpiration[Any]]:
    """By subkey what a key holds; nothing, if anybody has put a value in the place of it, be it a dictionary."""
    value = None if entry is None else entry.value
    parts = value.items() if isinstance(value, dict) else ()
    return {subkey: part for subkey, part in parts if isinstance(part, ValueWithExpiration)}


def _heir(entry: ValueWithExpiration[Any] | None, peer_id: PeerID) -> str | None:
    """The other replica that is declared for longest."""
    others = [
        (replica.expiration_time, peer)
        for peer, replica in _parts(entry).items()
        if isinstance(peer, str) and peer != peer_id.base58 and isinstance(replica.value, dict)
    ]
    return max(others)[1] if others else None


def _others(entry: ValueWithExpiration[Any] | None, uids: set[str], peer_id: PeerID) -> dict[int, tuple[str, str]]:
    """Experts that a prefix lists and that are not to be withdrawn."""
    return {
        coordinate: listed.value
        for coordinate, listed in _parts(entry).items()
        if isinstance(coordinate, int) and _is_expert(listed.value) and not _is_ours(listed.value, uids, peer_id)
    }


def _is_expert(value: object) -> bool:
    match value:
        case (str() as uid, str()) if isinstance(value, tuple):
            return is_valid_uid(uid)
    return False


def _is_ours(value: Any, uids: set[str], peer_id: PeerID) -> bool:
    return _is_expert(value) and value[0] in uids and value[1] == peer_id.base58
