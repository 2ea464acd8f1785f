"""What hivemind's ``DHT(...)`` takes beside a node's own arguments: what it means here, or why it means nothing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

from hivemind_p2p.config import DHTSettings, Settings
from hivemind_p2p.errors import ConfigError

_SETTINGS: Final = frozenset(field.name for field in fields(DHTSettings))
_RENAMED: Final = {"num_workers": "alpha"}
"""hivemind's name of a setting, and ours."""

_NO_DAEMON: Final = "it is an option of libp2p's Go daemon, and no daemon runs here"
_ONE_PROCESS: Final = "the node runs in this process, in a background thread that ends with it"
_WITHOUT_MEANING: Final = {
    "p2p": "a DHT runs a node of its own; share the DHT instead",
    "daemon": _ONE_PROCESS,
    "node_id": "it is made from the peer id, so that others find our addresses; identity_path keeps it the same",
    "beam_size": "a lookup hears bucket_size nodes; set that",
    "chunk_size": "bulk calls are bounded by parallel_rpc and keys_per_request; set those",
    "ensure_bootstrap_success": "a node that cannot join raises BootstrapError; catch that",
    "strict": "a peer that cannot be validated is always refused",
    "validate": "initial peers always check whether they can reach us",
    "no_listen": "say client_mode=True to listen on nothing",
    "dht_mode": "say client_mode=True to use the DHT without serving it",
} | dict.fromkeys(
    (
        "auto_nat", "check_if_identity_free", "conn_manager", "force_reachability", "idle_timeout", "nat_port_map",
        "persistent_conn_max_msg_size", "quic", "relay_hop_limit", "startup_timeout", "tls", "trusted_relays",
        "use_auto_relay", "use_ipfs", "use_relay",
    ),
    _NO_DAEMON,
)  # fmt: skip


def with_options(settings: Settings, options: Mapping[str, Any]) -> Settings:
    """Settings with the DHT's own ones replaced by ``options``; an option that is None says nothing.

    Raises:
        ConfigError: an option means nothing here, or nothing at all.
    """
    changes = {}
    for name, value in options.items():
        ours = _RENAMED.get(name, name)
        if ours in _SETTINGS:
            if value is not None:
                changes[ours] = value
        elif name in _WITHOUT_MEANING:
            raise ConfigError(f"DHT({name}=...) has no meaning here: {_WITHOUT_MEANING[name]}; leave it away")
        else:
            near = difflib.get_close_matches(name, [*_SETTINGS, "identity_path", "host_maddrs", "announce_maddrs"], 1)
            hint = f"; did you mean {near[0]}?" if near else "; see hivemind_p2p.DHT for what it takes"
            raise ConfigError(f"DHT({name}=...) is unknown{hint}")
    return replace(settings, dht=replace(settings.dht, **changes)) if changes else settings
