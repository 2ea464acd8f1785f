"""Settings: one frozen dataclass per concern, gathered in :class:`Settings`; ``config_sources`` reads them.

Every field has a default, so ``Settings()`` is a working node, and one of the types that ``config_sources`` converts:
``bool``, ``int``, ``float``, ``str``, ``Path``, ``Literal[...]``, ``tuple[T, ...]``, and ``T | None``. A class that
must hold more than types say checks it in ``__post_init__`` and raises :class:`~hivemind_p2p.errors.ConfigError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hivemind_p2p.config_hosting import HostingSettings as HostingSettings
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
    """Accepted connections that may be in their handshake at once. More are closed; but one from another IP address
    takes the place of the oldest of the address that has the most."""
    keepalive_interval: float = 20.0
    """A peer that was silent for this long is asked whether it is alive."""
    keepalive_in_use: float = 5.0
    """The same, while a stream is open on the connection: somebody may wait for a peer that is gone."""
    keepalive_timeout: float = 10.0
    """How long it may take to answer. A dead peer is noticed within both together."""
    max_streams_out: int = 256
    """Streams that we hold open on one connection; opening more waits. Other implementations refuse more than that;
    between nodes of yours it may be thousands, if ``max_streams_in`` of the other side allows them."""
    max_streams_in: int = 256
    """Streams that a peer may hold open to us on one connection; more are reset. An idle one costs about 7 KiB."""
    """Streams that a peer opened and nobody has accepted yet; more are reset."""
    max_receive_window: int = 16 * 2**20
    """Bytes that a peer may send on one stream before they are read. The window begins with 256 KiB and grows with use.
    A stream cannot be faster than one window per round trip."""
    max_unread: int = 64 * 2**20
    """Bytes that one connection makes us hold unread, on all its streams. Windows grow within it; a stream that gets
    more all the same is reset. A peer may fill 256 KiB on each of its streams whatever we say, so that more than
    ``max_unread`` / 256 KiB streams (``max_streams_in``) may get there without anybody being hostile."""
    quiet_libp2p: bool = True
    """Set the level of the ``libp2p`` logger to CRITICAL when a host starts, unless the program has set one: libp2p
    logs as errors what is daily life in a swarm (a peer that went away), and we report failures ourselves."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, bool) and not value > 0:  # NaN is not
                raise ConfigError(f"transport.{name} must be above zero, not {value}")
        if not 2**18 <= self.max_receive_window <= self.max_unread:
            raise ConfigError(
                f"transport.max_receive_window must be at least {2**18}, which Yamux gives every stream, and at most "
                f"transport.max_unread ({self.max_unread}), not {self.max_receive_window}"
            )


@dataclass(frozen=True)
class NATSettings:
    """Being reached wherever we are. Times are in seconds."""

    relays: int = 2
    """Relays that connect others to us while they cannot dial us. 0: none, then nobody reaches us behind a NAT."""
    relay_timeout: float = 10.0
    """The most that a relay may take to answer, to a reservation or to a circuit."""
    relay_retry: float = 1.0
    """How long a relay that failed is left alone; doubles with each failure in a row."""
    relay_retry_max: float = 60.0
    """The longest that a relay is left alone."""
    hole_punching: bool = True
    """Turn relayed connections into direct ones where the NATs allow it (DCUtR)."""
    punch_window: float = 3.0
    """How long both sides dial each other in one round."""
    punch_rounds: int = 3
    """Rounds before a relayed connection is left as it is for a while."""
    punch_again: float = 5.0
    """How long after rounds that failed they are tried again; doubles each time, up to an hour."""
    punches_per_minute: int = 120
    """Hole punches that we take part in because peers ask for them; more are refused. A tenth of it for one of them."""
    max_punches: int = 32
    """Hole punches under way at once; others wait, or are refused when peers ask for them."""
    port_mapping: bool = True
    """Ask the router of a NAT in front of us to forward our port (NAT-PMP, UPnP)."""
    port_mapping_lease: float = 3600.0
    """How long a router is asked to forward it, if it is not asked again; it is, three times as often."""
    mdns: bool | None = None
    """Find peers in the same private network by mDNS, be found, and join them. None: commands that were given no
    initial peers do, so that a swarm in one network needs none; programs of yours do not."""
    autonat: bool = True
    """Ask peers to dial us back, so that we know whether they can, and do so for them."""
    autonat_timeout: float = 5.0
    """How long a dial back to a peer who asked may take."""
    autonat_interval: float = 900.0
    """How often peers are asked again; sooner when something about our addresses changes."""
    autonat_per_minute: int = 60
    """Dial backs that we do for others in a minute; more are refused. A tenth for one of them; a fifth for dials
    to other IPs than the one that a peer is seen at."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None or isinstance(value, bool):
                continue
            if not (value > 0 or (name == "relays" and value == 0)):
                raise ConfigError(f"nat.{name} must be above zero, not {value}")


@dataclass(frozen=True)
class RelaySettings:
    """Connecting others who cannot dial each other (circuit relay v2). Times are in seconds; 0 is no limit.

    A tensor of 64 MiB has to fit, and a call that takes minutes: by default a circuit is not limited, their number is.
    """

    serve: Literal["auto", "always", "never"] = "auto"
    """``auto``: when others can dial us, or when there are no initial peers and so nobody yet to tell."""
    max_reservations: int = 1024
    """Peers that may be reached through us."""
    max_reservations_per_ip: int = 64
    """How many of them may come from one IP address."""
    reservation_time: float = 3600.0
    """How long a reservation holds; peers renew it before."""
    max_circuits: int = 1024
    """Circuits open at once."""
    max_circuits_per_peer: int = 128
    """How many of them may begin or end at one peer."""
    circuit_bytes: int = 0
    """Bytes that a circuit carries in each direction before it is cut."""
    circuit_time: float = 0.0
    """How long a circuit lives before it is cut."""
    handshake_timeout: float = 10.0
    """The most that a peer may take to say what it wants, or to agree to a circuit."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str):
                continue
            if not (value > 0 or (name in ("circuit_bytes", "circuit_time") and value == 0)):
                raise ConfigError(f"relay.{name} must be above zero, not {value}")


@dataclass(frozen=True)
class RPCSettings:
    """Remote calls, made and served. Times are in seconds."""

    timeout: float = 60.0
    """What a call may take in all when its caller does not say."""
    transfer_timeout: float = 60.0
    """The most that the request of a unary call that we serve may take to come, and its answer to go."""
    max_message_bytes: int = 2**22
    """The largest message of a unary call, envelope included, and the largest part of a tensor in a stream. It must not
    be above what peers take: 4 MiB in hivemind."""
    max_queued_items: int = 16
    """Items of one stream that were received and that its handler has not taken yet; then the sender must wait."""
    max_queued_bytes: int = 2**23
    """The most bytes of those; one item is always taken."""
    max_calls: int = 1024
    """Calls of one method that are served at once; more wait in line."""
    max_calls_per_peer: int = 64
    """Calls of one method and one peer that are served at once; more wait in line."""
    max_bytes_per_peer: int = 2**27
    """Bytes of requests that one peer may make us hold, of calls that are served and of items that wait for their
    handlers; what would be more is not read yet. One message is always taken."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"rpc.{name} must be above zero, not {value}")


@dataclass(frozen=True)
class DHTSettings:
    """The distributed hash table. Times are in seconds; symbols in parentheses are the Kademlia paper's."""

    bucket_size: int = 20
    """Contacts per bucket, and how many of the nearest nodes a lookup of nodes hears before it ends (k)."""
    depth_modulo: int = 5
    """A full bucket that does not hold our own id splits until its depth is a multiple of this (b)."""
    alpha: int = 4
    """Requests in flight for one key of a lookup (alpha)."""
    lookup_paths: int = 3
    """Disjoint paths of a lookup: one peer that lies, and its accomplices, spoil one of them (d in S/Kademlia)."""
    num_replicas: int = 5
    """How many nearest nodes are asked to store a record; at most ``bucket_size``."""
    parallel_rpc: int = 64
    """Requests that this node has in flight in all; more wait."""
    keys_per_request: int = 64
    """The most keys that one of our find requests asks for."""
    wait_timeout: float = 3.0
    """A request is lost after this long; one to a peer that usually answers fast, sooner."""
    slow_after: float = 1.0
    """A request that is not answered for this long, or for much longer than is usual for its peer, holds up its lookup
    no more: another peer is asked beside it."""
    lookup_timeout: float = 30.0
    """A lookup ends after this long with what it has found by then."""
    bootstrap_timeout: float = 15.0
    """How long an initial peer may take to answer, connecting included. Once one has answered, the others have
    ``wait_timeout`` to follow."""
    refresh_timeout: float | None = None
    """A bucket from which nobody was heard for this long is refreshed by looking up an id in it. None: never, which is
    fine for nodes that are in use."""
    blacklist_time: float = 5.0
    """A peer that did not answer is passed over for this long; 0 is never."""
    backoff_rate: float = 2.0
    """With each failure in a row, ``blacklist_time`` is multiplied by this, up to an hour."""
    cache_locally: bool = True
    """Keep what was found in our own cache."""
    cache_nearest: int = 1
    """Send what was found to this many of the nodes nearest to the key that did not have it, for their cache."""
    cache_on_store: bool = True
    """Keep what was stored in our own cache."""
    cache_size: int = 10_000
    """Records in the cache; what expires first is dropped first."""
    cache_refresh_before_expiry: float = 5.0
    """A record that was read from the cache is looked up again this long before it expires; 0 is never."""
    reuse_get_requests: bool = True
    """Callers who want the same key at the same time wait for one lookup."""
    max_clock_skew: float = 3.0
    """How far the clocks of peers may be apart: a node whose clock differs more from an initial peer's cannot join."""
    max_record_bytes: int = 2**20
    """The largest value, and the largest dictionary (subkeys and values together)."""
    max_key_bytes: int = 4096
    """The largest key or subkey, packed."""
    max_subkeys: int = 10_000
    """The most subkeys of one dictionary."""
    max_stored_records: int = 100_000
    """The most records that we keep for others; when full, new ones are refused until old ones expire."""
    max_stored_bytes: int = 2**28
    """The most bytes of records, ours and others', stored and cached; cached ones make room for stored ones."""
    max_peer_share: float = 0.125
    """The part of ``max_stored_records`` and ``max_stored_bytes`` that one peer may fill once half is in use."""
    max_lifetime: float = 30 * 86400.0
    """The longest that a record may be meant to last; what is to last longer is refused."""
    max_keys_per_message: int = 1024
    """The most keys that one request of others may hold, and that one of our store requests holds."""
    max_addresses: int = 6
    """The most addresses told or taken beside one peer id."""

    @property
    def search_width(self) -> int:
        """How many of the nearest nodes a get or a store hears before it ends: enough that ``num_replicas`` live."""
        return min(self.bucket_size, max(8, 2 * self.num_replicas))

    def __post_init__(self) -> None:
        may_be_zero = {"blacklist_time", "cache_nearest", "cache_refresh_before_expiry"}
        for name, value in vars(self).items():
            if isinstance(value, bool) or value is None or (value == 0 and name in may_be_zero):
                continue
            if not value > 0:
                raise ConfigError(f"dht.{name} must be above zero, not {value}")
        if self.num_replicas > self.bucket_size:
            raise ConfigError(
                f"dht.num_replicas must be at most dht.bucket_size ({self.bucket_size}), not {self.num_replicas}: a "
                "lookup finds no more nodes than that"
            )
        if self.backoff_rate < 1:
            raise ConfigError(f"dht.backoff_rate must be at least 1, not {self.backoff_rate}")


@dataclass(frozen=True)
class ControlSettings:
    """Answering, on this machine, how a running node is doing: to ``hivemind-p2p peers`` and ``doctor``."""

    serve: bool | None = None
    """Answer to the user that the node runs as, and to root. None: the commands do, and programs of yours do not."""
    directory: Path | None = None
    """Where the sockets of nodes lie. None: ``$XDG_RUNTIME_DIR/hivemind-p2p``, or ``/tmp/hivemind-p2p-<user id>``."""


@dataclass(frozen=True)
class Settings:
    """Everything that can be set about a node, by concern."""

    node: NodeSettings = field(default_factory=NodeSettings)
    transport: TransportSettings = field(default_factory=TransportSettings)
    nat: NATSettings = field(default_factory=NATSettings)
    relay: RelaySettings = field(default_factory=RelaySettings)
    rpc: RPCSettings = field(default_factory=RPCSettings)
    dht: DHTSettings = field(default_factory=DHTSettings)
    control: ControlSettings = field(default_factory=ControlSettings)
    hosting: HostingSettings = field(default_factory=HostingSettings)
