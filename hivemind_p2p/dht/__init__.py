"""The distributed hash table: who has what. ``DHTNode`` is its front door; the wire is hivemind 1.1's."""

from hivemind_p2p.dht.authorization import AuthorizerBase, TokenAuthorizerBase
from hivemind_p2p.dht.clock import get_dht_time
from hivemind_p2p.dht.keys import DHTID, DHTKey, DHTValue, Subkey
from hivemind_p2p.dht.node import DHTNode
from hivemind_p2p.dht.signatures import Ed25519SignatureValidator, RSASignatureValidator
from hivemind_p2p.dht.validation import CompositeValidator, DHTRecord, RecordValidatorBase
from hivemind_p2p.kademlia import ValueWithExpiration

__all__ = [
    "DHTID",
    "AuthorizerBase",
    "CompositeValidator",
    "DHTKey",
    "DHTNode",
    "DHTRecord",
    "DHTValue",
    "Ed25519SignatureValidator",
    "RSASignatureValidator",
    "RecordValidatorBase",
    "Subkey",
    "TokenAuthorizerBase",
    "ValueWithExpiration",
    "get_dht_time",
]
