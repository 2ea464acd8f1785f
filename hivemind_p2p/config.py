"""Settings: one frozen dataclass per concern, gathered in :class:`Settings`; ``config_sources`` reads them.

Every field has a default, so ``Settings()`` is a working node, and one of the types that ``config_sources`` converts:
``bool``, ``int``, ``float``, ``str``, ``Path``, ``Literal[...]``, ``tuple[T, ...]``, and ``T | None``. A class that
must hold more than types say checks it in ``__post_init__`` and raises :class:`~hivemind_p2p.errors.ConfigError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hivemind_p2p.errors import ConfigError


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
    """Dialing, connections and streams. Times are in seconds."""

    dial_timeout: float = 10.0
    """The most that one attempt at one address may take: name lookup, TCP, Noise and Yamux together."""
    dial_stagger: float = 0.25
    """The head start of an attempt over the next one (RFC 8305, "Connection Attempt Delay"). A failure ends it."""
    dial_parallel: int = 8
    """Attempts at one peer that may be under way at once."""
    dial_backoff: float = 0.5
    """How long an address that failed is left alone; doubles with each failure in a row. A success clears it."""
    dial_backoff_max: float = 15.0
    """The longest that an address is left alone."""
    resolve_timeout: float = 10.0
    """The most that looking up a peer's addresses in the swarm may take."""
    max_known_peers: int = 4096
    """Peers whose addresses are remembered; the one unused for longest is forgotten first."""
    max_addresses_per_peer: int = 16
    """Addresses remembered of one peer; proven ones stay, the worst goes first."""
    handshake_timeout: float = 10.0
    """The most that securing and multiplexing an accepted connection may take."""
    negotiate_timeout: float = 10.0
    """The most that agreeing on the protocol of a stream may take, on either side."""
    write_timeout: float = 60.0
    """A connection that takes no byte for this long is given up."""
    max_connections: int = 1024
    """Open connections. At the limit the longest idle one is closed for a new one; if none is idle, the new one is."""
    max_handshakes: int = 64
    """Accepted connections that may be in their handshake at once; more are closed."""
    max_streams_out: int = 256
    """Streams that we hold open on one connection; opening more waits. The stock Yamux allows 256."""
    max_streams_in: int = 256
    """Streams that a peer may hold open to us on one connection; more are reset."""
    quiet_libp2p: bool = True
    """Set the level of the ``libp2p`` logger to CRITICAL when a host starts, unless the program has set one: libp2p
    logs as errors what is daily life in a swarm (a peer that went away), and we report failures ourselves."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"transport.{name} must be above zero, not {value}")
        if self.max_streams_out > 256:
            raise ConfigError(f"transport.max_streams_out must be at most 256, not {self.max_streams_out}")


@dataclass(frozen=True)
class RPCSettings:
    """Remote calls, made and served."""


@dataclass(frozen=True)
class DHTSettings:
    """The distributed hash table."""


@dataclass(frozen=True)
class HostingSettings:
    """Which experts ``hivemind-p2p server`` hosts, and how they compute and learn."""

    expert_uids: tuple[str, ...] = ()
    """Exactly these experts: ``ffn.0.0``, ``ffn.0.1``. Instead of ``num_experts``."""
    num_experts: int | None = None
    """How many to host, under free uids drawn from ``expert_pattern``. Default: 1, unless ``expert_uids`` are given."""
    expert_pattern: str | None = None
    """Uids to draw from: ``ffn.[0:16].[0:16]`` is a grid of 256. Default: ``<expert_cls>.[0:4096]``."""
    expert_cls: str = "ffn"
    """The registered class of the experts: ``ffn``, ``transformer``, ``nop``, or one of your own."""
    hidden_dim: int = 1024
    """Size of the last axis of inputs and outputs."""
    min_batch_size: int = 1
    """Rows that a batch waits for."""
    max_batch_size: int = 4096
    """Rows that a batch never exceeds; a larger request runs in pieces."""
    device: str | None = None
    """Where experts compute: ``cpu``, ``cuda``, ``cuda:1``. Default: ``cuda`` where there is one, else ``cpu``."""
    optimizer: Literal["adam", "sgd", "none"] = "adam"
    """What a backward request does to the expert's weights; ``none`` leaves them as they are."""
    lr: float = 1e-3
    """Learning rate of the optimizer."""
    clip_grad_norm: float | None = None
    """Largest norm of an expert's gradient; a larger one is scaled down. None: no limit."""

    def __post_init__(self) -> None:
        if self.expert_uids and (self.num_experts is not None or self.expert_pattern is not None):
            raise ConfigError(
                "expert_uids already say which experts to host; leave num_experts and expert_pattern away"
            )
        for name in ("num_experts", "hidden_dim", "min_batch_size", "max_batch_size", "lr", "clip_grad_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} = {value} must be above 0")
        if self.min_batch_size > self.max_batch_size:
            raise ConfigError(f"min_batch_size = {self.min_batch_size} is above max_batch_size = {self.max_batch_size}")


@dataclass(frozen=True)
class Settings:
    """Everything that can be set about a node, by concern."""

    node: NodeSettings = field(default_factory=NodeSettings)
    transport: TransportSettings = field(default_factory=TransportSettings)
    rpc: RPCSettings = field(default_factory=RPCSettings)
    dht: DHTSettings = field(default_factory=DHTSettings)
    hosting: HostingSettings = field(default_factory=HostingSettings)
