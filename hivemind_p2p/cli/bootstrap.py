"""``hivemind-p2p bootstrap``: a peer that others join the swarm through. It runs the DHT only and needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hivemind_p2p.cli import options
from hivemind_p2p.cli.running import run_until_stopped, set_up_logging

if TYPE_CHECKING:
    from hivemind_p2p.node import Node

_LOOK = 1.0


def bootstrap(
    initial_peers: options.InitialPeers = None,
    host_maddrs: options.HostMaddrs = None,
    announce_maddrs: options.AnnounceMaddrs = None,
    identity_path: options.IdentityPath = None,
    mdns: options.Mdns = None,
    config: options.Config = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Run a peer that others join the swarm through, until Ctrl-C or SIGTERM.

    Without --initial-peers it is the first of its swarm, or joins one that it finds in its network (--no-mdns: not).
    """
    set_up_logging(verbose)
    settings = options.settings_from(
        config,
        {
            "node.initial_peers": initial_peers,
            "node.host_maddrs": host_maddrs,
            "node.announce_maddrs": announce_maddrs,
            "node.identity_path": identity_path,
            "nat.mdns": mdns,
        },
    )
    settings = options.for_serving(settings)

    async def serve() -> None:
        import trio

        from hivemind_p2p.node import Node

        async with Node(**options.node_options(settings)) as node:
            print(ready_as_json(node) if as_json else ready_as_text(node), flush=True)
            if as_json:
                await trio.sleep_forever()
            await tell_new_addresses(node)

    run_until_stopped(serve)


async def tell_new_addresses(node: Node) -> None:
    """Print addresses to hand out that come later, when the router forwards a port; never returns."""
    import trio

    told = set(node.visible_maddrs)
    while True:
        await trio.sleep(_LOOK)
        new = [maddr for maddr in node.visible_maddrs if maddr not in told and "/p2p-circuit/" not in str(maddr)]
        told.update(new)
        for maddr in new:
            print(f"It is also reached at\n  {maddr}", flush=True)


def ready_as_json(node: Node) -> str:
    """What a program that started us needs."""
    addresses = [str(maddr) for maddr in node.visible_maddrs]
    return json.dumps(
        {
            "peer_id": node.peer_id.base58,
            "addresses": addresses,
            "server_command": server_command(addresses),
            "python": python_line(addresses),
        }
    )


def ready_as_text(node: Node) -> str:
    """What a person who started us needs, in lines to paste."""
    addresses = [str(maddr) for maddr in node.visible_maddrs]
    return "\n".join(
        [
            f"Bootstrap peer {node.peer_id.base58} is up, at",
            *(f"  {address}" for address in addresses),
            "Host experts in its swarm, here or elsewhere:",
            f"  {server_command(addresses)}",
            "Use them from Python:",
            f"  {python_line(addresses)}",
            "Ctrl-C stops it.",
        ]
    )


def server_command(addresses: Sequence[str]) -> str:
    """The shell line that hosts an expert in the swarm of the peer at ``addresses``."""
    return "hivemind-p2p server --initial-peers " + " ".join(addresses)


def python_line(addresses: Sequence[str]) -> str:
    """The Python line that joins the swarm of the peer at ``addresses``."""
    return f"dht = hivemind_p2p.DHT(initial_peers={json.dumps(list(addresses))}, start=True)"
