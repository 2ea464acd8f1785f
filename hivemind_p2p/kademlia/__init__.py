"""Kademlia without a network: ids, k-buckets, the iterative lookup, and storage that expires.

Nothing here opens a socket, reads a clock or draws a random number: time comes in as a float, randomness as a
``random.Random``-like source, peers as any hashable thing. The same code serves every key space: SHA-1 (160 bits) for
the DHT, SHA-256 for libp2p's peer routing.

Source: P. Maymounkov and D. Mazières, *Kademlia: A Peer-to-peer Information System Based on the XOR Metric*, 2002.
"""

from hivemind_p2p.kademlia.ids import SHA1, SHA256, Contact, KeySpace, NodeID
from hivemind_p2p.kademlia.lookup import Lookup, Request
from hivemind_p2p.kademlia.records import DictionaryValue, RecordStorage
from hivemind_p2p.kademlia.routing_table import Bucket, RoutingTable
from hivemind_p2p.kademlia.shares import Shares
from hivemind_p2p.kademlia.storage import ExpiringStorage, ValueWithExpiration
from hivemind_p2p.kademlia.verdict import Verdict

__all__ = [
    "SHA1",
    "SHA256",
    "Bucket",
    "Contact",
    "DictionaryValue",
    "ExpiringStorage",
    "KeySpace",
    "Lookup",
    "NodeID",
    "RecordStorage",
    "Request",
    "RoutingTable",
    "Shares",
    "ValueWithExpiration",
    "Verdict",
]
