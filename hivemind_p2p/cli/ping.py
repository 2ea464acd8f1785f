"""``hivemind-p2p ping``: is the peer at an address alive, and does it answer as a DHT peer? Also a health check."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from hivemind_p2p.cli import options
from hivemind_p2p.cli.running import run_until_stopped, set_up_logging
from hivemind_p2p.config import Settings
from hivemind_p2p.errors import ConfigError, DeadlineExceeded

METHOD = "DHTProtocol.rpc_ping"


def ping(
    address: Annotated[
        str | None, typer.Argument(help="Where: a multiaddr that ends in /p2p/<peer id>.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.", min=0.001)] = 5.0,
    host_maddrs: options.HostMaddrs = None,
    identity_path: options.IdentityPath = None,
    config: options.Config = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Ask the peer at ADDRESS for a sign of life; exit with 0 when it answers, 1 when not.

    Without ADDRESS: the node on this machine that the same options, environment and --config describe (its identity
    file says who it is, its first address to listen on says where). That is what the image's health check does.
    """
    set_up_logging(verbose)
    settings = options.settings_from(config, {"node.host_maddrs": host_maddrs, "node.identity_path": identity_path})
    target = address if address is not None else own_address(settings)

    async def serve() -> None:
        print(await sign_of_life(target, settings, timeout, as_json=as_json), flush=True)

    run_until_stopped(serve)


async def sign_of_life(address: str, settings: Settings, timeout: float, *, as_json: bool) -> str:
    """Connect as a client, call ``rpc_ping`` once, and tell how long that took.

    Raises:
        ConfigError, DialError, RPCError
    """
    import trio

    from hivemind_p2p.node import Node
    from hivemind_p2p.wire import dht_pb2

    async with Node(client_mode=True, settings=settings) as node:
        began = time.perf_counter()
        try:
            with trio.fail_after(timeout):
                peer_id = await node.connect(address)
                connected = time.perf_counter()
                answer = await node.rpc.call(peer_id, METHOD, dht_pb2.PingRequest(), dht_pb2.PingResponse)
                answered = time.perf_counter()
        except trio.TooSlowError:
            raise DeadlineExceeded(
                f"{address} did not answer within {timeout:g} s; is the peer up, and is the way to it open?"
            ) from None
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
            "give the ADDRESS to ping: that of a node here can be told only from an identity file that is there and a"
            f" fixed port to listen on (node.identity_path = {path}, node.host_maddrs[0] = {maddr})"
        )
    here = str(Multiaddr(maddr)).replace("/ip4/0.0.0.0/", "/ip4/127.0.0.1/").replace("/ip6/::/", "/ip6/::1/")
    return f"{here}/p2p/{Identity.load_or_create(path).peer_id}"
