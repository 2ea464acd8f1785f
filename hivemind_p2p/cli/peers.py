"""``hivemind-p2p peers``: who the nodes that run on this machine are connected to, and how."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hivemind_p2p.cli import options
from hivemind_p2p.cli.dht import make_table, print_table
from hivemind_p2p.cli.running import run_until_stopped, set_up_logging
from hivemind_p2p.errors import ControlError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hivemind_p2p.config import Settings
    from hivemind_p2p.control.client import Answer

COLUMNS = ["peer", "path", "at", "dialled", "since", "round trip", "received", "sent"]
Node = Annotated[
    str | None, typer.Argument(help="Only the node whose peer id ends like this.", metavar="NODE", show_default=False)
]


def peers(
    node: Node = None,
    config: options.Config = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, nothing else; with --watch, one for each change.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", "-w", help="Keep looking: a table on a terminal, otherwise a line for each change."),
    ] = False,
    every: Annotated[
        float, typer.Option("--interval", help="Seconds between two looks of --watch.", min=0.1, metavar="SECONDS")
    ] = 2.0,
    verbose: options.Verbose = False,
) -> None:
    """List the connections of your nodes on this machine: direct or by which relay, since when, round trip, bytes.

    Only the user that a node runs as may ask it, and root. Exits with 1 when no node is running; --watch waits for one.
    """
    set_up_logging(verbose)
    settings = options.settings_from(config, {})

    async def look() -> list[Answer]:
        return await ask(settings, "peers", node)

    async def serve() -> None:
        from hivemind_p2p.cli import watch as watching

        if watch and sys.stdout.isatty() and not as_json:
            await watching.show(look, every, picture)
        if watch:
            await watching.follow(look, every, as_json=as_json)
        answers = answered(await ask(settings, "peers", node), settings, node)
        if as_json:
            nodes = [{"peer_id": each.peer_id, "pid": each.pid, "peers": each.answer} for each in answers]
            print(json.dumps({"nodes": nodes}))
        else:
            lonely = not all(each.answer for each in answers)
            places = (
                {each.peer_id: each.answer or [] for each in await ask(settings, "addresses", node)} if lonely else {}
            )
            for each in answers:
                if each.answer:
                    print_table(headline(each), COLUMNS, map(row, each.answer))
                else:
                    print(f"{headline(each)}\n{alone(places.get(each.peer_id, []))}")

    run_until_stopped(serve)


async def ask(settings: Settings, question: str, node: str | None) -> list[Answer]:
    """What the running nodes say, or the one that ``node`` names."""
    from hivemind_p2p.control import ask_all

    answers = await ask_all(question, directory=settings.control.directory)
    return [each for each in answers if each.peer_id.endswith(node or "")]


def answered(answers: Sequence[Answer], settings: Settings, node: str | None) -> Sequence[Answer]:
    """The answers themselves.

    Raises:
        ControlError: there is none, or one is a refusal.
    """
    from hivemind_p2p.control.place import directory_of

    if not answers:
        which = f"whose peer id ends with {node} " if node else ""
        raise ControlError(
            f"no node {which}of this user runs on this machine (none answers in "
            f"{directory_of(settings.control.directory)}); start one with `hivemind-p2p bootstrap` or `server`, run "
            "this as the user that it runs as, or, in a program of yours, set control.serve"
        )
    for each in answers:
        if each.error:
            raise ControlError(f"the node {each.peer_id} does not say: {each.error}")
    return answers


def picture(answers: Sequence[Answer]) -> RenderableType:
    """The tables of all nodes, one below the other."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for each in answers:
        if each.error:
            parts.append(Text(f"{each.peer_id} (process {each.pid}) does not say: {each.error}"))
        elif each.answer:
            parts.append(make_table(headline(each), COLUMNS, map(row, each.answer)))
        else:
            parts.append(Text(f"{headline(each)}\n{alone([])}"))
    return Group(*parts)


def alone(addresses: Sequence[str]) -> str:
    """What to do about a node that nobody is connected to.

    Args:
        addresses: where others may join it, as far as they are known.
    """
    join = "".join(f"\n  --initial-peers {address}" for address in addresses) or (
        " --initial-peers and an address\nthat it printed when it started."
    )
    return (
        f"Nobody is connected to it. Others join with{join}\n`hivemind-p2p doctor` says whether they can reach it. If "
        "it should have joined others itself, see whether one\nof its own initial peers is there: `hivemind-p2p ping "
        "ADDRESS`."
    )


def headline(answer: Answer) -> str:
    """What there is to say before the table."""
    relayed = sum(each["path"] == "relayed" for each in answer.answer if each["in_use"])
    count = len({each["peer_id"] for each in answer.answer})
    how = f", {count - relayed} directly, {relayed} relayed" if count else ""
    return f"{answer.peer_id} (process {answer.pid}) is connected to {count} peer{'s'[: count != 1]}{how}"


def row(peer: dict[str, Any]) -> list[str]:
    """One connection."""
    address = peer["address"] or ""
    return [
        peer["peer_id"] if peer["in_use"] else f"{peer['peer_id']} (spare)",
        "direct" if peer["path"] == "direct" else f"relayed by ...{peer['relay'][-8:]}",
        address.partition("/p2p/")[0],
        "by us" if peer["outbound"] else "by it",
        duration(peer["open_for_s"]),
        "none" if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.1f} ms",
        size(peer["bytes_received"]),
        size(peer["bytes_sent"]),
    ]


def duration(seconds: float) -> str:
    """``42 s``, ``7 min``, ``3 h 5 min``, ``2 d 1 h``."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if not minutes:
        return f"{seconds:.0f} s"
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if not days else f"{days} d {hours % 24} h"


def size(count: float) -> str:
    """``512 B``, ``1.5 MiB``."""
    if count < 1024:
        return f"{count:.0f} B"
    step = min(int(math.log2(count)) // 10, 4)
    return f"{count / 1024**step:.1f} {' KMGT'[step]}iB"
