"""``Node``: one peer, composed. The only place where transport, calls and the DHT are put together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import trio
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from hivemind_p2p.config import Settings
from hivemind_p2p.control import ControlServer
from hivemind_p2p.dht import AuthorizerBase, DHTNode, RecordValidatorBase
from hivemind_p2p.dht.remembered import path_beside
from hivemind_p2p.errors import BootstrapError, ConfigError, HivemindError, NodeClosed
from hivemind_p2p.nat import NAT
from hivemind_p2p.nat.diagnosis import Diagnosis, diagnose, health_as_json
from hivemind_p2p.nat.facts import Facts
from hivemind_p2p.rpc import RPC
from hivemind_p2p.transport.addresses import endpoint_of
from hivemind_p2p.transport.api import Connection, Network, Stream, StreamHandler
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.nat.local_peers import LocalPeers
    from hivemind_p2p.transport.host import Host
    from hivemind_p2p.transport.report import ConnectionReport

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
DEFAULT_HOST_MADDRS = ("/ip4/0.0.0.0/tcp/0",)
_NEIGHBOURS = 1.5
"""Seconds to wait for peers in the same network, if they are looked for and nobody else is known."""
_AGAIN, _AGAIN_MAX = 2.0, 60.0
"""Seconds before the swarm is joined anew after that failed in another network; doubles each time."""


class Node:
    """One peer of a swarm: ``async with Node(initial_peers=[...]) as node``.

    Entering it listens, joins the swarm through any live one of ``initial_peers`` and serves the DHT; leaving it stops
    all of that. A node without initial peers is the first of its swarm; one with an identity file also remembers its
    peers, next to that file, and comes back to them when no initial peer answers, or none is given.

    Args:
        initial_peers: addresses of live peers, each ending in ``/p2p/<peer id>``.
        host_maddrs: addresses to listen on. Port 0 takes a free one. Default: every IPv4 interface, a free port.
        announce_maddrs: addresses to tell others instead of those we listen on (a forwarded port, a DNS name).
        identity_path: file with the node's key, created when it is not there. Default: a new identity each time.
        client_mode: listen on nothing and stay out of the routing tables of others; for short-lived trainers.
        settings: everything else, see :mod:`hivemind_p2p.config`.
        record_validators: judge and sign what the DHT stores, see :mod:`hivemind_p2p.dht.validation`.
        authorizer: for a moderated swarm, see :mod:`hivemind_p2p.dht.authorization`.

    Raises (on entering):
        ConfigError: an address is malformed, or lacks its ``/p2p/<peer id>``.
        IdentityError: the identity file is broken.
        ListenError: an address to listen on cannot be used.
        BootstrapError: none of the initial peers answered, nor any of the last run.
    """

    def __init__(
        self,
        initial_peers: Sequence[str | Multiaddr] = (),
        *,
        host_maddrs: Sequence[str | Multiaddr] = DEFAULT_HOST_MADDRS,
        announce_maddrs: Sequence[str | Multiaddr] = (),
        identity_path: str | Path | None = None,
        client_mode: bool = False,
        settings: Settings | None = None,
        record_validators: Iterable[RecordValidatorBase] = (),
        authorizer: AuthorizerBase | None = None,
    ) -> None:
        self.settings = settings if settings is not None else Settings()
        self.client_mode = client_mode
        self._initial_peers = [_with_peer_id(maddr) for maddr in _addresses("initial_peers", initial_peers)]
        self._host_maddrs = () if client_mode else tuple(_addresses("host_maddrs", host_maddrs))
        self._announce_maddrs = tuple(_addresses("announce_maddrs", announce_maddrs))
        self._identity_path = identity_path
        self._record_validators, self._authorizer = list(record_validators), authorizer
        self._stack: AsyncExitStack | None = None
        self._network: Network | None = None
        self._nat: NAT | None = None
        self._rpc: RPC | None = None
        self._dht: DHTNode | None = None
        self._neighbours: LocalPeers | None = None

    async def __aenter__(self) -> Self:
        from hivemind_p2p.transport.host import Host  # libp2p: loaded when a node starts, not when it is named

        if self._stack is not None:
            raise NodeClosed("this node was started before; make a new Node instead of entering one twice")
        identity = Identity.load_or_create(self._identity_path)
        async with AsyncExitStack() as stack:
            host = Host(
                identity,
                host_maddrs=self._host_maddrs,
                announce_maddrs=self._announce_maddrs,
                settings=self.settings.transport,
            )
            network: Network = await stack.enter_async_context(host)
            nat = await stack.enter_async_context(
                NAT(host, self.settings.nat, self.settings.relay, initial_peers=self._initial_peers)
            )
            rpc = await stack.enter_async_context(RPC(network, self.settings.rpc))
            dht = await stack.enter_async_context(
                DHTNode(
                    rpc,
                    self.settings.dht,
                    client_mode=self.client_mode,
                    record_validators=self._record_validators,
                    identity=identity,
                    authorizer=self._authorizer,
                    remember_in=None if self._identity_path is None else path_beside(self._identity_path),
                )
            )
            network.set_peer_resolver(dht.find_peer)
            nat.roaming.announce = partial(self._join_anew, nat, dht)
            if self._initial_peers:
                await nat.prepare(self.settings.nat.relay_timeout)  # so that the swarm hears where we are reached
            await self._join(dht)
            if self.settings.nat.mdns:
                await self._find_neighbours(stack, host, dht)
            self._network, self._nat, self._rpc, self._dht = network, nat, rpc, dht
            control = self.settings.control
            if control.serve:
                answers = {"peers": self._tell_peers, "doctor": self._tell_health, "addresses": self._tell_addresses}
                await stack.enter_async_context(ControlServer(identity.peer_id, answers, directory=control.directory))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        self._network = self._nat = self._rpc = self._dht = self._neighbours = None
        await self._stack.__aexit__(kind, error, trace)

    @property
    def network(self) -> Network:
        """Connections and streams."""
        return self._running(self._network)

    @property
    def nat(self) -> NAT:
        """How we are reached: relays, hole punching."""
        return self._running(self._nat)

    @property
    def rpc(self) -> RPC:
        """Remote calls, made and served."""
        return self._running(self._rpc)

    @property
    def dht(self) -> DHTNode:
        """The distributed hash table."""
        return self._running(self._dht)

    @property
    def peer_id(self) -> PeerID:
        """Who we are."""
        return self.network.peer_id

    @property
    def visible_maddrs(self) -> Sequence[Multiaddr]:
        """Addresses for others' ``initial_peers``, each ending in ``/p2p/<our id>``; empty in client mode."""
        return self.network.visible_maddrs

    def connections(self, peer_id: PeerID | None = None) -> Sequence[Connection]:
        """Open connections, to one peer or to all."""
        return self.network.connections(peer_id)

    async def peers(self, timeout: float = 5.0) -> list[ConnectionReport]:
        """Every connection: direct or by which relay, since when, round trip (measured now), bytes.

        Those to one peer stand together, the one in use first.

        Args:
            timeout: the most seconds that measuring may take; 0 measures nothing.
        """
        from hivemind_p2p.transport.report import report

        return await report(sorted(self.connections(), key=lambda each: each.peer_id), timeout)

    async def diagnose(self) -> tuple[Facts, Diagnosis]:
        """How we are reached: what is known about it, and what that means. Takes a second."""
        nat, network = self._running(self._nat), self.network
        facts = await nat.examine()
        ports = {endpoint.port for maddr in self._host_maddrs if (endpoint := endpoint_of(maddr)) is not None}
        direct = {each.peer_id for each in network.connections() if each.relay is None}
        relayed = {each.peer_id for each in network.connections()} - direct
        facts = replace(
            facts,
            fixed_port=next(iter(sorted(ports)), 0),
            clock_offset=self.dht.clock_offset,
            direct_peers=len(direct),
            relayed_peers=len(relayed),
        )
        return facts, diagnose(facts)

    async def connect(self, maddr: str | Multiaddr) -> PeerID:
        """Connect to the peer at ``maddr`` (ending in ``/p2p/<id>``) unless we are connected; return its id.

        ``/p2p/<id>`` alone is the peer wherever the swarm knows it to be.

        Raises:
            ConfigError: the address is malformed.
            DialError: nobody answered there, or somebody else.
        """
        [address] = _addresses("maddr", [maddr])
        return await self.network.connect(_with_peer_id(address))

    async def open_stream(self, peer_id: PeerID, protocol: str, *, carries: int = 0) -> Stream:
        """Open a stream to a peer, finding its address in the DHT and connecting first when needed.

        Args:
            carries: bytes that are to go over it in one direction, the more of the two, as far as that is known. What
                a relay would cut off (foreign ones carry 128 KiB) then waits for a direct connection.

        Raises:
            DialError, ProtocolNotSupported, StreamError
            RelayLimited: only a relay leads to the peer that does not carry so much.
        """
        return await self.network.open_stream(peer_id, protocol, carries=carries)

    def set_stream_handler(self, protocol: str, handler: StreamHandler | None) -> None:
        """Serve a protocol of your own: ``async def handler(stream)``; ``None`` stops serving it."""
        self.network.set_stream_handler(protocol, handler)

    def __repr__(self) -> str:
        if self._network is None:
            return "<Node, not running>"
        mode = ", client mode" if self.client_mode else ""
        return f"<Node {self.peer_id.base58[-8:]}, {len(self.connections())} connections{mode}>"

    async def _join(self, dht: DHTNode) -> None:
        """Through the initial peers; through those of the last run when none of them answers, or there are none."""
        if not self._initial_peers:
            await dht.rejoin()
            return
        try:
            await dht.bootstrap(self._initial_peers)
        except BootstrapError as error:
            if not await dht.rejoin():
                raise
            logger.warning("joined through peers of the last run instead of the initial ones: %s", error)

    async def _join_anew(self, nat: NAT, dht: DHTNode) -> None:
        """We are in another network: let the swarm hear where, as soon as somebody relays for us."""
        if self._neighbours is not None:
            self._neighbours.network_changed()
        pause = _AGAIN
        while True:
            with trio.move_on_after(self.settings.nat.relay_timeout):
                await nat.keeper.settled()
            try:
                if self._initial_peers:
                    await dht.bootstrap(self._initial_peers)
                else:
                    await dht.find_nearest_nodes([dht.node_id], exclude_self=True)
                return
            except NodeClosed:
                return
            except HivemindError as error:
                logger.debug("not in the swarm again yet: %s", error)
            await trio.sleep(pause)
            pause = min(2 * pause, _AGAIN_MAX)

    async def _tell_health(self) -> dict[str, Any]:
        return health_as_json(*await self.diagnose())

    async def _tell_addresses(self) -> list[str]:
        return [str(maddr) for maddr in self.visible_maddrs]

    async def _tell_peers(self) -> list[dict[str, Any]]:
        return [each.to_json() for each in await self.peers()]

    async def _find_neighbours(self, stack: AsyncExitStack, host: Host, dht: DHTNode) -> None:
        """Meet the peers in our network, now and later; a node that knows nobody else waits a moment for the first."""
        from hivemind_p2p.nat.local_peers import LocalPeers

        async def meet(maddrs: Sequence[Multiaddr]) -> None:
            try:
                await dht.bootstrap(maddrs)
            except BootstrapError as error:
                logger.debug("a peer in our network is not of our kind: %s", error)

        neighbours = self._neighbours = await stack.enter_async_context(LocalPeers(host, meet))
        if not host.connections():
            with trio.move_on_after(_NEIGHBOURS):
                await neighbours.met.wait()

    def _running(self, part: _T | None) -> _T:
        if part is None:
            raise NodeClosed("this node is not running: use it inside `async with Node(...) as node`")
        return part


def _addresses(option: str, maddrs: Sequence[str | Multiaddr]) -> list[Multiaddr]:
    if isinstance(maddrs, str | Multiaddr):
        raise ConfigError(f"{option} is a single address; give a list of addresses: [{str(maddrs)!r}]")
    parsed = []
    for maddr in maddrs:
        try:
            parsed.append(maddr if isinstance(maddr, Multiaddr) else Multiaddr(maddr))
        except (MultiaddrError, ValueError) as error:
            example = "/ip4/203.0.113.5/tcp/31337/p2p/12D3Koo..."
            raise ConfigError(
                f"{option}: {maddr!r} is not a multiaddr ({error}); it should look like {example}"
            ) from None
    return parsed


def _with_peer_id(maddr: Multiaddr) -> Multiaddr:
    if "p2p" not in {protocol.name for protocol in maddr.protocols()}:
        raise ConfigError(
            f"{maddr} does not say which peer lives there; append /p2p/<peer id>, as `hivemind-p2p bootstrap` prints it"
        )
    return maddr
