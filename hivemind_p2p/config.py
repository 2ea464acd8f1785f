"""Settings: one frozen dataclass per concern, gathered in :class:`Settings`; ``config_sources`` reads them.

Every field has a default, so ``Settings()`` is a working node, and one of the types that ``config_sources`` converts:
``bool``, ``int``, ``float``, ``str``, ``Path``, ``Literal[...]``, ``tuple[T, ...]``, and ``T | None``. A class that
must hold more than types say checks it in ``__post_init__`` and raises :class:`~hivemind_p2p.errors.ConfigError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class NodeSettings:
    """Who a node is, where it listens and whom it joins; the arguments of :class:`hivemind_p2p.Node`."""

    initial_peers: tuple[str, ...] = ()
    """Addresses of live peers, each ending in ``/p2p/<peer id>``. None: the first node of its swarm."""
    host_maddrs: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    """Addresses to listen on; port 0 takes a free one."""
    announce_maddrs: tuple[str, ...] = ()
    """Addresses to tell others instead of those we listen on."""
    identity_path: Path | None = None
    """File with the node's key, created when it is not there. None: a new identity at every start."""


@dataclass(frozen=True)
class TransportSettings:
    """Dialing, connections and streams."""


@dataclass(frozen=True)
class RPCSettings:
    """Remote calls, made and served."""


@dataclass(frozen=True)
class DHTSettings:
    """The distributed hash table."""


@dataclass(frozen=True)
class Settings:
    """Everything that can be set about a node, by concern."""

    node: NodeSettings = field(default_factory=NodeSettings)
    transport: TransportSettings = field(default_factory=TransportSettings)
    rpc: RPCSettings = field(default_factory=RPCSettings)
    dht: DHTSettings = field(default_factory=DHTSettings)
