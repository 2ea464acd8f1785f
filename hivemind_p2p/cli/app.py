"""The console entry: verbs gathered, arguments made ready for click, errors made ready for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from hivemind_p2p import __version__
from hivemind_p2p.cli.bootstrap import bootstrap
from hivemind_p2p.cli.dht import dht
from hivemind_p2p.cli.doctor import doctor
from hivemind_p2p.cli.help import InGroups
from hivemind_p2p.cli.peers import peers
from hivemind_p2p.cli.ping import ping
from hivemind_p2p.cli.server import server
from hivemind_p2p.errors import HivemindError

PROGRAM = "hivemind-p2p"
LISTS = frozenset({"--initial-peers", "--host-maddrs", "--announce-maddrs", "--expert-uids", "--device"})
"""Options that take any number of values: ``--expert-uids ffn.0 ffn.1``."""

app = typer.Typer(
    name=PROGRAM, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None
)
app.command(cls=InGroups)(bootstrap)
app.command(cls=InGroups)(server)
app.command()(ping)
app.command()(peers)
app.command()(doctor)
app.add_typer(dht)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A peer-to-peer node for deep learning."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when done or asked to stop, 1 for an error of ours, 2 for a wrong option."""
    try:
        app(list(repeat_options(sys.argv[1:] if arguments is None else arguments)), prog_name=PROGRAM)
    except HivemindError as error:
        report([error])
    except BaseExceptionGroup as group:
        errors, others = group.split(HivemindError)
        if errors is None or others is not None:
            raise
        report(list(_leaves(errors)))
    raise SystemExit(1)


def repeat_options(arguments: Sequence[str]) -> Iterator[str]:
    """Give each value of a list its own option, which is the only way click takes several.

    ``--expert-uids ffn.0 ffn.1`` becomes ``--expert-uids ffn.0 --expert-uids ffn.1``. Options spelt with underscores,
    as hivemind's are, become ours: ``--hidden_dim=64`` is ``--hidden-dim=64``.
    """
    option, values = "", 0
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            name, equals, value = argument.partition("=")
            option, values = name.replace("_", "-") if name.startswith("--") else name, len(equals)
            yield option + equals + value
        else:
            if option in LISTS and values:
                yield option
            values += 1
            yield argument


def report(errors: Sequence[BaseException]) -> None:
    """Say on stderr what went wrong, one paragraph for each error."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    for error in errors:
        console.print(Text.assemble((f"{PROGRAM}: ", "bold red"), str(error)))


def _leaves(group: BaseExceptionGroup[HivemindError]) -> Iterator[HivemindError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
