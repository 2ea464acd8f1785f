"""The distributed hash table: who has what. ``DHTNode`` is its front door; the wire is hivemind 1.1's."""

from hivemind_p2p.dht.clock import get_dht_time
from hivemind_p2p.dht.keys import DHTID, DHTKey, DHTValue, Subkey
from hivemind_p2p.dht.node import DHTNode
from hivemind_p2p.kademlia import ValueWithExpiration

__all__ = ["DHTID", "DHTKey", "DHTNode", "DHTValue", "Subkey", "ValueWithExpiration", "get_dht_time"]
