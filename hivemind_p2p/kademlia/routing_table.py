"""Whom a node knows: k-buckets (sections 2.2, 2.4 and 4.2 of the paper).

The table is a binary tree over the id space, kept as its leaves in order. Each leaf, a bucket, covers the ids that
share a prefix of ``depth`` bits and holds at most ``k`` contacts, least recently heard of first. It starts as one
bucket for everything. A full bucket splits in two when it may hold one of the ``k`` contacts nearest to us (our own id
is in its range, or fewer than ``k`` are in nearer buckets), or when its depth is not a multiple of ``b``. So we know
all of our neighbourhood, and of everything else enough that a lookup gains ``b`` bits a hop.

A full bucket that may not split takes nobody new: nodes that have been up for long are the likeliest to stay. The
newcomer waits in the bucket's replacement cache, and the least recently heard of contact is handed to the caller to
be pinged. When that one answers, it moves to the end of the line; when it does not, the caller removes it and the
newest replacement takes its place. So no flood of newcomers can push out nodes that live.

Two rules beyond the paper keep one liar from filling the table: a peer is in it under one id only, the latest it gave;
and an id belongs to the peer that had it first, until that one fails.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from typing import Final, Generic

from hivemind_p2p.kademlia.ids import Contact, KeySpace, NodeID, P

_MOST: Final = 2 / 3
"""Part of all nodes; what we know of how many there are is a fifth off, mostly."""


class Bucket(Generic[P]):
    """The contacts whose ids are in ``[lower, upper)``, a range of ``2 ** (bits - depth)`` ids."""

    def __init__(self, lower: NodeID, upper: NodeID, depth: int, capacity: int, last_updated: float) -> None:
        self.lower, self.upper, self.depth, self.capacity = lower, upper, depth, capacity
        self.last_updated = last_updated
        self.contacts: dict[NodeID, P] = {}
        """Least recently heard of first."""
        self.replacements: dict[NodeID, P] = {}
        """Likewise; used from the end."""
        self.being_pinged: set[NodeID] = set()

    def distance(self, target: NodeID) -> int:
        """Distance of ``target`` to the nearest id of the range, which is 0 inside it.

        Ranges are aligned, so of two buckets every id of the nearer one is nearer than every id of the other.
        """
        low_bits = self.upper - self.lower - 1
        return (target ^ self.lower) & ~low_bits

    def add(self, contact: Contact[P]) -> bool:
        """Put a contact last in the line, of contacts when there is room, otherwise of replacements (False)."""
        node_id, peer = contact
        self.being_pinged.discard(node_id)
        self.replacements.pop(node_id, None)
        if self.contacts.pop(node_id, None) is not None or len(self.contacts) < self.capacity:
            self.contacts[node_id] = peer
            return True
        self.replacements[node_id] = peer
        if len(self.replacements) > self.capacity:
            del self.replacements[next(iter(self.replacements))]
        return False

    def remove(self, node_id: NodeID) -> None:
        """Forget a contact; the newest replacement takes its place."""
        self.being_pinged.discard(node_id)
        self.replacements.pop(node_id, None)
        if self.contacts.pop(node_id, None) is not None and self.replacements:
            newest, peer = self.replacements.popitem()
            self.contacts[newest] = peer

    def __repr__(self) -> str:
        return f"<Bucket depth={self.depth} {len(self.contacts)}+{len(self.replacements)} contacts>"


class RoutingTable(Generic[P]):
    """The contacts of one node, by distance.

    Args:
        own: who we are; never in the table.
        space: where ids live.
        bucket_size: ``k``, contacts per bucket.
        depth_modulo: ``b``: buckets split until their depth is a multiple of it.
        now: current time, seconds of any clock that the caller keeps to.
    """

    def __init__(
        self, own: Contact[P], *, space: KeySpace, bucket_size: int = 20, depth_modulo: int = 5, now: float = 0.0
    ) -> None:
        self.own, self.space, self.bucket_size, self.depth_modulo = own, space, bucket_size, depth_modulo
        self.buckets: list[Bucket[P]] = [Bucket(0, space.size, 0, bucket_size, now)]
        """In the order of their ranges, which partition the space."""
        self._ids: dict[P, NodeID] = {}

    def bucket_of(self, node_id: NodeID) -> Bucket[P]:
        """The bucket whose range holds ``node_id``."""
        return self.buckets[self._index(node_id)]

    def heard_from(self, contact: Contact[P], now: float) -> Contact[P] | None:
        """Note a sign of life: a request from a node, or its answer to ours.

        Returns:
            A contact to ping, because it stands in the way of this one and may be dead. Tell its answer by
            ``heard_from``, its silence by ``remove``. None: nothing to do.
        """
        node_id, peer = contact
        if node_id == self.own.node_id or peer == self.own.peer:
            return None
        bucket = self.bucket_of(node_id)
        holder = bucket.contacts.get(node_id, peer)
        if holder != peer:
            return self._to_ping(bucket, Contact(node_id, holder))
        if bucket.replacements.get(node_id, peer) != peer:  # nobody vouches for a replacement
            self.remove(node_id)
        known_as = self._ids.get(peer)
        if known_as is not None and known_as != node_id:
            self.remove(known_as)
            bucket = self.bucket_of(node_id)
        while not (added := self._add(bucket, contact, now)) and self._may_split(bucket):
            self._split(bucket)
            bucket = self.bucket_of(node_id)
        if added:
            return None
        return next(
            (ping for other in bucket.contacts.items() if (ping := self._to_ping(bucket, Contact(*other)))), None
        )

    def remove(self, node_id: NodeID) -> None:
        """Forget a node, because it does not answer."""
        bucket = self.bucket_of(node_id)
        peer = bucket.contacts.get(node_id, bucket.replacements.get(node_id))
        bucket.remove(node_id)
        if peer is not None:
            del self._ids[peer]

    def nearest(self, target: NodeID, count: int, *, exclude: Collection[NodeID] = ()) -> list[Contact[P]]:
        """Up to ``count`` contacts, nearest to ``target`` first; never ourselves."""
        found: list[Contact[P]] = []
        for bucket in sorted(self.buckets, key=lambda bucket: bucket.distance(target)):
            ranked = sorted(bucket.contacts, key=target.__xor__)
            found += [Contact(node_id, bucket.contacts[node_id]) for node_id in ranked if node_id not in exclude]
            if len(found) >= count:
                break
        return found[:count]

    def knows_all_near(self, target: NodeID, count: int) -> bool:
        """Whether the ``count`` contacts nearest to ``target`` are likely to be the nearest that there are.

        They are if most nodes are in the table, and none of their buckets had no room for somebody.
        """
        if len(self) < _MOST * self.estimated_size():
            return False
        found = 0
        for bucket in sorted(self.buckets, key=lambda bucket: bucket.distance(target)):
            if bucket.replacements:
                return False
            found += len(bucket.contacts)
            if found >= count:
                break
        return found > 0

    def estimated_size(self) -> float:
        """How many nodes there are, judged by how near to us the nearest are; a table that is not full knows all."""
        if len(self) <= self.bucket_size:
            return float(len(self))
        farthest = self.nearest(self.own.node_id, self.bucket_size)[-1]
        return self.bucket_size * self.space.size / (farthest.node_id ^ self.own.node_id)

    def stale_buckets(self, before: float) -> list[Bucket[P]]:
        """Buckets from which nobody was heard since ``before``: look up a random id of each (section 2.3)."""
        return [bucket for bucket in self.buckets if bucket.last_updated < before]

    def id_of(self, peer: P) -> NodeID | None:
        """The id under which a peer is in the table, as contact or replacement."""
        return self._ids.get(peer)

    def __contains__(self, node_id: object) -> bool:
        return isinstance(node_id, int) and node_id in self.bucket_of(node_id).contacts

    def __iter__(self) -> Iterator[Contact[P]]:
        return (Contact(*item) for bucket in self.buckets for item in bucket.contacts.items())

    def __len__(self) -> int:
        return sum(len(bucket.contacts) for bucket in self.buckets)

    def __repr__(self) -> str:
        return f"<RoutingTable of {self.own.node_id:040x}: {len(self)} contacts in {len(self.buckets)} buckets>"

    def _index(self, node_id: NodeID) -> int:
        return bisect_right(self.buckets, node_id, key=lambda bucket: bucket.lower) - 1

    def _add(self, bucket: Bucket[P], contact: Contact[P], now: float) -> bool:
        bucket.last_updated = now
        replaced = set(bucket.replacements.values()) if bucket.replacements else ()
        added = bucket.add(contact)
        if replaced:
            for dropped in set(replaced) - set(bucket.replacements.values()) - set(bucket.contacts.values()):
                del self._ids[dropped]
        self._ids[contact.peer] = contact.node_id
        return added

    def _may_split(self, bucket: Bucket[P]) -> bool:
        if bucket.depth >= self.space.bits or bucket.depth % self.depth_modulo != 0:
            return bucket.depth < self.space.bits
        distance = bucket.distance(self.own.node_id)
        nearer = sum(len(other.contacts) for other in self.buckets if other.distance(self.own.node_id) < distance)
        return nearer < self.bucket_size

    def _split(self, bucket: Bucket[P]) -> None:
        middle = (bucket.lower + bucket.upper) // 2
        halves = [
            Bucket[P](lower, upper, bucket.depth + 1, bucket.capacity, bucket.last_updated)
            for lower, upper in ((bucket.lower, middle), (middle, bucket.upper))
        ]
        for node_id, peer in [*bucket.contacts.items(), *bucket.replacements.items()]:
            halves[node_id >= middle].add(Contact(node_id, peer))
        for half in halves:
            half.being_pinged = {node_id for node_id in bucket.being_pinged if node_id in half.contacts}
        index = self._index(bucket.lower)
        self.buckets[index : index + 1] = halves

    @staticmethod
    def _to_ping(bucket: Bucket[P], contact: Contact[P]) -> Contact[P] | None:
        if contact.node_id in bucket.being_pinged:
            return None
        bucket.being_pinged.add(contact.node_id)
        return contact
