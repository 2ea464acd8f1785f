"""Ids, and the spaces they live in.

A node and a key are named by numbers of the same space, so that "the nodes nearest to a key" means something. The
distance of two ids is their XOR read as a number (section 2.1 of the paper): it is symmetric, zero only for equal ids,
and for every id and distance there is exactly one id at that distance, so that lookups for one key converge along the
same path from wherever they start.

Ids are plain integers here: XOR, comparison and hashing of integers are as fast as Python gets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeAlias, TypeVar

NodeID: TypeAlias = int
"""An id of a node or of a key, ``0 <= id < space.size``."""

P = TypeVar("P", bound=Hashable)


class Contact(NamedTuple, Generic[P]):
    """A node as others know it: its id, and what the network calls it (a peer id)."""

    node_id: NodeID
    peer: P


@dataclass(frozen=True)
class KeySpace:
    """The ids that a hash function can give.

    Args:
        name: for messages to people.
        bits: length of an id.
        digest: bytes to ``bits / 8`` bytes.
    """

    name: str
    bits: int
    digest: Callable[[bytes], bytes]

    @property
    def size(self) -> int:
        """How many ids there are; one more than the largest."""
        return 1 << self.bits

    def hash(self, data: bytes) -> NodeID:
        """The id of ``data``."""
        return int.from_bytes(self.digest(data), "big")

    def to_bytes(self, node_id: NodeID) -> bytes:
        """An id as it travels: ``bits / 8`` bytes, big-endian."""
        return node_id.to_bytes(self.bits // 8, "big")

    def from_bytes(self, raw: bytes) -> NodeID:
        """The reverse of :meth:`to_bytes`.

        Raises:
            ValueError: the length is not that of an id.
        """
        if len(raw) * 8 != self.bits:
            raise ValueError(f"an id of {self.name} has {self.bits // 8} bytes, not {len(raw)}")
        return int.from_bytes(raw, "big")


SHA1 = KeySpace("SHA-1", 160, lambda data: hashlib.sha1(data, usedforsecurity=False).digest())
"""The space of hivemind's DHT."""
SHA256 = KeySpace("SHA-256", 256, lambda data: hashlib.sha256(data).digest())
"""The space of libp2p's peer routing (``/ipfs/kad/1.0.0``)."""
