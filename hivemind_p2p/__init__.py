"""hivemind_p2p: a peer-to-peer node for deep learning.

Importing this package imports nothing else: each name below is loaded when it is first used, so that a peer that only
runs the DHT never pays for torch, and a script that only parses a setting never pays for libp2p.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Compression": "hivemind_p2p.client",
    "DHT": "hivemind_p2p.sync",
    "DHTNode": "hivemind_p2p.dht",
    "Ed25519SignatureValidator": "hivemind_p2p.dht",
    "ExpertBackend": "hivemind_p2p.runtime",
    "Node": "hivemind_p2p.node",
    "PeerID": "hivemind_p2p.wire.peer_id",
    "RSASignatureValidator": "hivemind_p2p.dht",
    "RecordValidatorBase": "hivemind_p2p.dht",
    "RemoteExpert": "hivemind_p2p.client",
    "RemoteMixtureOfExperts": "hivemind_p2p.client",
    "RemoteSwitchMixtureOfExperts": "hivemind_p2p.client",
    "Runtime": "hivemind_p2p.runtime",
    "SchemaValidator": "hivemind_p2p.dht.schema",
    "Server": "hivemind_p2p.server",
    "background_server": "hivemind_p2p.server",
    "call_together": "hivemind_p2p.client",
    "client_stats": "hivemind_p2p.client",
    "declare_experts": "hivemind_p2p.server",
    "get_dht_time": "hivemind_p2p.dht",
    "get_experts": "hivemind_p2p.client",
    "register_expert_class": "hivemind_p2p.server",
}

__all__ = [
    "DHT",
    "Compression",
    "DHTNode",
    "Ed25519SignatureValidator",
    "ExpertBackend",
    "Node",
    "PeerID",
    "RSASignatureValidator",
    "RecordValidatorBase",
    "RemoteExpert",
    "RemoteMixtureOfExperts",
    "RemoteSwitchMixtureOfExperts",
    "Runtime",
    "SchemaValidator",
    "Server",
    "background_server",
    "call_together",
    "client_stats",
    "declare_experts",
    "get_dht_time",
    "get_experts",
    "register_expert_class",
]

if TYPE_CHECKING:
    from hivemind_p2p.client import (
        Compression,
        RemoteExpert,
        RemoteMixtureOfExperts,
        RemoteSwitchMixtureOfExperts,
        call_together,
        client_stats,
        get_experts,
    )
    from hivemind_p2p.dht import (
        DHTNode,
        Ed25519SignatureValidator,
        RecordValidatorBase,
        RSASignatureValidator,
        get_dht_time,
    )
    from hivemind_p2p.dht.schema import SchemaValidator
    from hivemind_p2p.node import Node
    from hivemind_p2p.runtime import ExpertBackend, Runtime
    from hivemind_p2p.server import Server, background_server, declare_experts, register_expert_class
    from hivemind_p2p.sync import DHT
    from hivemind_p2p.wire.peer_id import PeerID


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    with _nothing_collected():
        value = getattr(import_module(home), name)
    globals()[name] = value
    return value


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """What modules are made of stays; to look for garbage in it, over and over while it grows, is a tenth of the time
    that torch takes. So the collector waits, and then counts what there is as old: it looks at that when at everything.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if gc.get_freeze_count() == 0:  # what somebody has frozen would not stay so
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
