"""``hivemind-p2p doctor``: how others reach a node, what is in the way, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hivemind_p2p.cli import options
from hivemind_p2p.cli.peers import answered, ask
from hivemind_p2p.cli.running import run_until_stopped, set_up_logging
from hivemind_p2p.errors import BootstrapError

if TYPE_CHECKING:
    from hivemind_p2p.config import Settings
    from hivemind_p2p.node import Node


def doctor(
    node: Annotated[
        str | None,
        typer.Option(help="Only the running node whose peer id ends like this.", metavar="ID", show_default=False),
    ] = None,
    initial_peers: options.InitialPeers = None,
    host_maddrs: options.HostMaddrs = None,
    announce_maddrs: options.AnnounceMaddrs = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for peers to try to dial back.", min=0)] = 10.0,
    config: options.Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Say what kind of NAT this is, who can reach what and who found that, and what to do when something is wrong.

    Asks your nodes that run on this machine. With --initial-peers, or when none is running, it starts one of its own
    for a few seconds, which joins through those peers. Exits with 1 when a node cannot be reached or cannot join.
    """
    set_up_logging(verbose)
    settings = options.settings_from(
        config,
        {
            "node.initial_peers": initial_peers,
            "node.host_maddrs": host_maddrs,
            "node.announce_maddrs": announce_maddrs,
        },
    )
    found: list[dict[str, Any]] = []

    async def serve() -> None:
        answers = [] if initial_peers else await ask(settings, "doctor", node)
        if node is not None and not initial_peers:
            answers = list(answered(answers, settings, node))
        if answers:
            found.extend(each.answer for each in answered(answers, settings, node))
        else:
            found.append(await examine(settings, timeout))
        if as_json:
            print(json.dumps({"nodes": found}))
        else:
            for health in found:
                show(health)

    run_until_stopped(serve)
    raise typer.Exit(0 if found and all(health["grade"] != "bad" for health in found) else 1)


async def examine(settings: Settings, timeout: float) -> dict[str, Any]:
    """Start a node, wait until a peer has tried to dial it back, and look at it.

    Raises:
        ConfigError, ListenError: there cannot be such a node.
    """
    from hivemind_p2p.nat.diagnosis import diagnose, health_as_json
    from hivemind_p2p.nat.facts import Facts
    from hivemind_p2p.node import Node

    arguments = {**options.node_options(settings), "identity_path": None}  # the real one may be running
    try:
        async with Node(**arguments) as node:
            await _until_tried(node, timeout)
            return health_as_json(*await node.diagnose())
    except BootstrapError as error:
        facts = Facts(problem=str(error))
        return health_as_json(facts, diagnose(facts))


async def _until_tried(node: Node, timeout: float) -> None:
    import trio

    with trio.move_on_after(timeout if node.settings.node.initial_peers else 0):
        await node.nat.autonat.tried.wait()


def show(health: dict[str, Any]) -> None:
    """Print what there is to say about one node."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    colour = {"good": "green", "fair": "yellow", "bad": "red"}[health["grade"]]
    console.print(
        Text.assemble((f" {health['grade'].upper()} ", f"bold reverse {colour}"), " ", (health["verdict"], "bold"))
    )
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for title, lines in facts(health):
        for number, line in enumerate(lines):
            grid.add_row("" if number else title, Text(line))
    console.print(grid)
    if health["steps"]:
        console.print(Text("What to do" if health["grade"] == "bad" else "What could be better", style="bold"))
        steps = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
        steps.add_column(style="bold", no_wrap=True)
        steps.add_column(overflow="fold")
        for number, step in enumerate(health["steps"], 1):
            steps.add_row(f"{number}.", Text(step))
        console.print(steps)


def facts(health: dict[str, Any]) -> list[tuple[str, Sequence[str]]]:
    """What is known, as titles and lines."""
    if health["problem"]:
        return []
    clock = health["clock_offset"]
    relays = (
        [f"{len(health['relays'])} of {health['relays_wanted']} wanted"] if health["relays_wanted"] else ["none needed"]
    )
    relays += [f"...{each['peer_id'][-8:]} at {each['maddrs'][0].partition('/p2p/')[0]}" for each in health["relays"]]
    if health["is_relay"]:
        relays.append("this node is a relay for others")
    return [
        ("peer id", [health["peer_id"]]),
        ("NAT", [health["nat"]["in_words"], *_way(health)]),
        ("seen at", _sightings(health["sightings"])),
        ("addresses", [_address(each) for each in health["addresses"]] or ["none: it listens on nothing"]),
        ("relays", relays),
        ("port mapping", [health["port_mapping"] or "not asked for"]),
        ("IPv6", health["ipv6"] or ["this machine has no global IPv6 address"]),
        ("clock", ["nobody was asked" if clock is None else f"{-clock:+.2f} s from most peers"]),
        ("peers", [f"{health['direct_peers']} connected directly, {health['relayed_peers']} through relays"]),
    ]


def _way(health: dict[str, Any]) -> list[str]:
    return [f"on the way out: {', '.join(health['private_hops'])}"] if health["private_hops"] else []


def _sightings(sightings: Sequence[dict[str, Any]]) -> list[str]:
    """Where peers see the node, the latest first; each place once."""
    observers: dict[str, list[str]] = {}
    for each in reversed(sightings):
        observers.setdefault(f"{each['ip']} port {each['port']}", []).append(each["observer"])
    lines = [
        f"{place} by ...{names[0][-8:]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for place, names in observers.items()
    ]
    return [*lines[:4], f"and {len(lines) - 4} more places"] if len(lines) > 5 else lines or ["nobody said"]


def _address(address: dict[str, Any]) -> str:
    words = {"reachable": "reachable", "unreachable": "not reachable", "unknown": "nobody tried"}[address["verdict"]]
    trials = [
        f"...{each['observer'][-8:]} {'got in' if each['reached'] else 'did not get in'} {each['age']:.0f} s ago"
        + (", proved" if each["reached"] and each["autonat"] == 2 else "")
        for each in address["trials"][-3:]
    ]
    return f"{address['maddr']}: {words}" + (f" ({', '.join(trials)})" if trials else "")
