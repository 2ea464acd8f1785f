"""``hivemind-p2p dht``: look into a swarm's DHT, and write to it. Each verb joins as a client and leaves again."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hivemind_p2p.cli import options
from hivemind_p2p.cli.running import run_until_stopped, set_up_logging
from hivemind_p2p.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from hivemind_p2p.dht import ValueWithExpiration
    from hivemind_p2p.dht.survey import PeerReport
    from hivemind_p2p.node import Node

dht = typer.Typer(name="dht", no_args_is_help=True, help="Look into a swarm's DHT, and write to it.")
_WHAT = "JSON where it is JSON ('5', '[1, 2]'), otherwise text."
Key = Annotated[str, typer.Argument(help=_WHAT, show_default=False)]
_DEEPEST = 64
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]


@dht.command()
def get(
    key: Key,
    latest: Annotated[bool, typer.Option(help="Ask all nodes near the key for the newest; or take the first.")] = True,
    initial_peers: options.InitialPeers = None,
    config: options.Config = None,
    as_json: Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Print what the swarm holds under KEY; exit with 1 if that is nothing."""

    async def look_up(node: Node) -> bool:
        from hivemind_p2p.dht import get_dht_time

        found = await node.dht.get(parsed(key, hashable=True), latest)
        if found is None:
            print(json.dumps({"found": False}) if as_json else f"nobody has anything under {key}")
            return False
        has_subkeys, rows = records(found, get_dht_time())
        if as_json:
            print(json.dumps(plain({"found": True, "has_subkeys": has_subkeys, "records": rows})))
        else:
            titles = ["subkey", "value", "expires in"] if has_subkeys else ["value", "expires in"]
            print_table(f"{key}", titles, ([*_cells(row, has_subkeys), f"{row['expires_in_s']:.0f} s"] for row in rows))
        return True

    run(look_up, initial_peers, config, verbose)


@dht.command()
def put(
    key: Key,
    value: Annotated[str, typer.Argument(help=_WHAT, show_default=False)],
    subkey: Annotated[str | None, typer.Option(help="Write this part of the key only.", show_default=False)] = None,
    expires_in: Annotated[float, typer.Option(help="Seconds that it lasts.", min=0.001)] = 300.0,
    initial_peers: options.InitialPeers = None,
    config: options.Config = None,
    as_json: Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Store VALUE under KEY; exit with 1 if no node takes it, which mostly means that there is a newer one."""

    async def store(node: Node) -> bool:
        from hivemind_p2p.dht import get_dht_time

        part = None if subkey is None else parsed(subkey, hashable=True)
        name, expiration_time = parsed(key, hashable=True), get_dht_time() + expires_in
        stored = await node.dht.store(name, parsed(value), expiration_time, part)
        if as_json:
            print(json.dumps({"stored": stored, "expiration_time": expiration_time}))
        else:
            print(f"stored for {expires_in:g} s" if stored else f"not stored: {key} has a value that expires later")
        return stored

    run(store, initial_peers, config, verbose)


@dht.command("find-peer")
def find_peer(
    peer_id: Annotated[str, typer.Argument(help="12D3Koo... or Qm...", show_default=False)],
    initial_peers: options.InitialPeers = None,
    config: options.Config = None,
    as_json: Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Print the addresses of a peer, one a line, as the swarm tells them; exit with 1 if nobody knows any."""

    async def look_up(node: Node) -> bool:
        from hivemind_p2p.wire.peer_id import PeerID

        try:
            wanted = PeerID.from_base58(peer_id)
        except ValueError as error:
            raise ConfigError(f"{error}; a peer id looks like 12D3KooW... or Qm...") from None
        addresses = [f"{maddr}/p2p/{wanted}" for maddr in await node.dht.find_peer(wanted)]
        if as_json:
            print(json.dumps({"peer_id": wanted.base58, "addresses": addresses}))
        else:
            print("\n".join(addresses) or f"nobody knows where {wanted} is")
        return bool(addresses)

    run(look_up, initial_peers, config, verbose)


@dht.command()
def stats(
    max_nodes: Annotated[int, typer.Option(help="Stop after so many nodes.", min=1)] = 10_000,
    initial_peers: options.InitialPeers = None,
    config: options.Config = None,
    as_json: Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Walk through the whole swarm: every node, where it is, how fast it answers, and what its clock says."""

    async def look_around(node: Node) -> bool:
        reports = await node.dht.survey(max_nodes)
        if as_json:
            print(json.dumps(summary(reports, node.dht.clock_offset), default=str))
        else:
            titles = ["node id", "peer", "answers in", "clock", "address"]
            print_table(_headline(reports, node.dht.clock_offset), titles, map(_stats_row, reports))
        return any(report.ping is not None for report in reports)

    run(look_around, initial_peers, config, verbose)


def run(verb: Callable[[Node], Awaitable[bool]], initial_peers: list[str] | None, config: Any, verbose: bool) -> None:
    """Join as a client, do it, leave; exit with 1 when it says False.

    Raises:
        ConfigError: nobody says which swarm.
        BootstrapError: none of its peers answers.
    """
    set_up_logging(verbose)
    settings = options.settings_from(config, {"node.initial_peers": initial_peers})
    if not settings.node.initial_peers:
        raise ConfigError("say which swarm: --initial-peers with the address of a live peer of it")
    results = []

    async def serve() -> None:
        from hivemind_p2p.node import Node

        async with Node(settings.node.initial_peers, client_mode=True, settings=settings) as node:
            results.append(await verb(node))

    run_until_stopped(serve)
    raise typer.Exit(0 if results == [True] else 1)


def parsed(text: str, *, hashable: bool = False) -> Any:
    """What a word on the command line means; lists become tuples where something hashable is asked for."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return _tuples(value) if hashable else value


def records(found: ValueWithExpiration[Any], now: float) -> tuple[bool, list[dict[str, Any]]]:
    """Whether what was found has subkeys, and one row for each, or for the whole."""
    from hivemind_p2p.dht import ValueWithExpiration

    value = found.value
    # A value may be a dictionary, too, and an empty one; one of subkeys is never empty.
    has_subkeys = isinstance(value, dict) and bool(value)
    has_subkeys = has_subkeys and all(isinstance(item, ValueWithExpiration) for item in value.values())
    return has_subkeys, [
        {"subkey": subkey, "value": item.value, "expires_in_s": round(item.expiration_time - now, 3)}
        for subkey, item in (value.items() if has_subkeys else [(None, found)])
    ]


def plain(value: Any, depth: int = 0) -> Any:
    """What any peer may have stored, as JSON has it; what it has no word for, and what is too deep, as text."""
    if depth > _DEEPEST:
        return reprlib.repr(value)
    if isinstance(value, dict):
        return {key if isinstance(key, str) else shown(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    is_json = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_json else shown(value)


def shown(value: Any) -> str:
    """What any peer may have stored, as text for a terminal."""
    if isinstance(value, str) and value.replace("\n", "").replace("\t", "").isprintable():
        return value
    try:
        return repr(value)
    except RecursionError:
        return reprlib.repr(value)


def summary(reports: Sequence[PeerReport], clock_offset: float | None) -> dict[str, Any]:
    """The result of ``stats`` for programs."""
    return {
        "nodes": len(reports),
        "answering": sum(report.ping is not None for report in reports),
        "clock_offset_s": clock_offset,
        "peers": [
            {
                "node_id": f"{report.contact.node_id:040x}",
                "peer_id": report.contact.peer.base58,
                "addresses": [str(maddr) for maddr in report.maddrs],
                "ping_ms": None if report.ping is None else round(1000 * report.ping, 3),
                "clock_offset_s": report.clock_offset,
                "problem": report.problem or None,
            }
            for report in reports
        ],
    }


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as wide as the terminal, or as it needs to be when nobody looks."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=200)).print(make_table(title, columns, rows))


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of plain text."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))  # what peers stored, or say of their failures, is no markup
    return table


def _headline(reports: Sequence[PeerReport], clock_offset: float | None) -> str:
    answering = sum(report.ping is not None for report in reports)
    clock = "" if clock_offset is None else f"; their clocks are {clock_offset:+.2f} s from ours"
    return f"{len(reports)} nodes, {answering} of them answer{clock}"


def _stats_row(report: PeerReport) -> list[str]:
    ping = report.problem if report.ping is None else f"{1000 * report.ping:.1f} ms"
    clock = "" if report.clock_offset is None else f"{report.clock_offset:+.2f} s"
    address = str(report.maddrs[0]) if report.maddrs else ""
    return [f"{report.contact.node_id:040x}"[:12], report.contact.peer.base58, ping, clock, address]


def _cells(row: dict[str, Any], has_subkeys: bool) -> list[str]:
    cells = [row["subkey"], row["value"]] if has_subkeys else [row["value"]]
    return [shown(cell) for cell in cells]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
