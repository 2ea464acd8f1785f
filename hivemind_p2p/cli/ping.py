"""``hivemind-p2p ping``: is a peer alive, does it answer as a DHT peer, how is it reached? Also a health check."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from hivemind_p2p.cli import options
from hivemind_p2p.cli.running import run_until_stopped, set_up_logging
from hivemind_p2p.config import Settings
from hivemind_p2p.errors import ConfigError, DeadlineExceeded

if TYPE_CHECKING:
    from hivemind_p2p.node import Node

METHOD = "DHTProtocol.rpc_ping"
TIMEOUT, TIMEOUT_UNTIL_DIRECT = 5.0, 20.0


def ping(
    peer: Annotated[
        str | None,
        typer.Argument(
            help="A multiaddr that ends in /p2p/<peer id>, or a peer id of the swarm of --initial-peers.",
            show_default=False,
        ),
    ] = None,
    until_direct: Annotated[
        bool, typer.Option("--until-direct", help="Tell how the path changes, until it is a direct one.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            help=f"Seconds that it may take in all (default: {TIMEOUT:g}; {TIMEOUT_UNTIL_DIRECT:g} --until-direct).",
            min=0.001,
            show_default=False,
        ),
    ] = None,
    initial_peers: options.InitialPeers = None,
    host_maddrs: options.HostMaddrs = None,
    identity_path: options.IdentityPath = None,
    config: options.Config = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Ask PEER for a sign of life; exit with 0 when it answers, 1 when not.

    With --until-direct: say how it is reached, through which relay or directly, as that changes; exit with 0 once the
    path is direct, 1 when it does not become direct in time.

    Without PEER: the node on this machine that the same options, environment and --config describe (its identity
    file says who it is, its first address to listen on says where). That is what the image's health check does.
    """
    set_up_logging(verbose)
    settings = options.settings_from(
        config,
        {
            "node.initial_peers": initial_peers,
            "node.host_maddrs": host_maddrs,
            "node.identity_path": identity_path,
        },
    )
    target = target_of(peer, settings) if peer is not None else own_address(settings)
    limit = timeout if timeout is not None else TIMEOUT_UNTIL_DIRECT if until_direct else TIMEOUT
    succeeded = []

    async def serve() -> None:
        from hivemind_p2p.node import Node

        # An address says where the peer is; only a bare id needs the swarm.
        known = settings.node.initial_peers if target.startswith("/p2p/") else ()
        async with Node(known, client_mode=True, settings=settings) as node:
            if until_direct:
                from hivemind_p2p.cli.until_direct import follow

                succeeded.append(await follow(node, target, limit, as_json=as_json))
            else:
                print(await sign_of_life(node, target, limit, as_json=as_json), flush=True)
                succeeded.append(True)

    run_until_stopped(serve)
    raise typer.Exit(0 if succeeded == [True] else 1)


async def sign_of_life(node: Node, address: str, timeout: float, *, as_json: bool) -> str:
    """Connect, call ``rpc_ping`` once, and tell how long that took.

    Raises:
        ConfigError, DialError, RPCError
    """
    import trio

    from hivemind_p2p.wire import dht_pb2

    began = time.perf_counter()
    try:
        with trio.fail_after(timeout):
            peer_id = await node.connect(address)
            connected = time.perf_counter()
            answer = await node.rpc.call(peer_id, METHOD, dht_pb2.PingRequest(), dht_pb2.PingResponse)
            answered = time.perf_counter()
    except trio.TooSlowError:
        raise too_slow(address, timeout) from None
    connect_ms, ping_ms = 1000 * (connected - began), 1000 * (answered - connected)
    clock_s = answer.dht_time - time.time()
    if as_json:
        return json.dumps(
            {
                "peer_id": peer_id.base58,
                "connect_ms": round(connect_ms, 3),
                "ping_ms": round(ping_ms, 3),
                "clock_offset_s": round(clock_s, 3),
            }
        )
    return (
        f"{peer_id.base58} answered in {ping_ms:.1f} ms"
        f" (connected in {connect_ms:.1f} ms, its clock is {clock_s:+.1f} s from ours)"
    )


def too_slow(address: str, timeout: float) -> DeadlineExceeded:
    """The error for a peer that did not answer in time."""
    return DeadlineExceeded(
        f"{address} did not answer within {timeout:g} s; is the peer up, and is the way to it open?"
    )


def target_of(peer: str, settings: Settings) -> str:
    """The address to connect to: as it is given, or ``/p2p/<peer id>`` for an id.

    Raises:
        ConfigError: it is an id, and nobody says which swarm knows it.
    """
    if not peer.startswith("/"):
        from hivemind_p2p.wire.peer_id import PeerID

        try:
            peer = f"/p2p/{PeerID.from_base58(peer)}"
        except ValueError as error:
            raise ConfigError(
                f"{error}; give a peer id (12D3KooW... or Qm...), or an address that ends in /p2p/<peer id>"
            ) from None
    if peer.startswith("/p2p/") and "/p2p-circuit" not in peer and not settings.node.initial_peers:
        raise ConfigError(f"where is {peer}? Say which swarm knows: --initial-peers with the address of a live peer")
    return peer


def own_address(settings: Settings) -> str:
    """Where the node that ``settings`` describe listens, as seen from this machine.

    Raises:
        ConfigError: its identity or its port change from start to start.
        IdentityError: its identity file is broken.
    """
    from multiaddr import Multiaddr

    from hivemind_p2p.transport.identity import Identity

    path, maddr = settings.node.identity_path, settings.node.host_maddrs[0]
    if path is None or not path.exists() or "/tcp/0" in maddr:
        raise ConfigError(
            "give the PEER to ping: the address of a node here can be told only from an identity file that is there and"
            f" a fixed port to listen on (node.identity_path = {path}, node.host_maddrs[0] = {maddr})"
        )
    here = str(Multiaddr(maddr)).replace("/ip4/0.0.0.0/", "/ip4/127.0.0.1/").replace("/ip6/::/", "/ip6/::1/")
    return f"{here}/p2p/{Identity.load_or_create(path).peer_id}"
