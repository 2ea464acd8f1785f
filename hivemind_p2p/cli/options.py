"""Options that verbs share, and how they become settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hivemind_p2p.config import NodeSettings, Settings
from hivemind_p2p.config_sources import load_settings


def setting(text: str, panel: str, *, default: object = None, metavar: str | None = None) -> Any:
    """An option for a setting: None when not given, so that the environment and the file can have their say."""
    if default is not None:
        text += f" (default: {default})"
    return typer.Option(help=text, metavar=metavar, rich_help_panel=panel, show_default=False)


_NODE = "This node"
_COMMAND = "This command"
_LISTEN = " ".join(NodeSettings().host_maddrs)

InitialPeers = Annotated[
    list[str] | None,
    setting("Addresses of live peers, as `hivemind-p2p bootstrap` prints them.", _NODE, metavar="MADDR..."),
]
HostMaddrs = Annotated[
    list[str] | None,
    setting("Addresses to listen on; port 0 takes a free one.", _NODE, default=_LISTEN, metavar="MADDR..."),
]
AnnounceMaddrs = Annotated[
    list[str] | None,
    setting("Addresses to tell others instead of those: a forwarded port, a DNS name.", _NODE, metavar="MADDR..."),
]
Mdns = Annotated[
    bool | None,
    typer.Option(
        "--mdns/--no-mdns",
        help="Find and join peers in the same private network (default: when there are no initial peers).",
        rich_help_panel=_NODE,
        show_default=False,
    ),
]
IdentityPath = Annotated[
    Path | None,
    setting("File with this node's key, made when not there. Without it every start is a new peer.", _NODE),
]
Config = Annotated[
    Path | None,
    setting("TOML file with settings; options and the environment win over it.", _COMMAND, metavar="FILE"),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object when ready, nothing else.", rich_help_panel=_COMMAND)
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what happens.", rich_help_panel=_COMMAND)]


def node_options(settings: Settings) -> dict[str, Any]:
    """Arguments of :class:`hivemind_p2p.Node` and :class:`hivemind_p2p.DHT` that ``settings`` say."""
    node = settings.node
    return {
        "initial_peers": node.initial_peers,
        "host_maddrs": node.host_maddrs,
        "announce_maddrs": node.announce_maddrs,
        "identity_path": node.identity_path,
        "settings": settings,
    }


def settings_from(config: Path | None, options: Mapping[str, object]) -> Settings:
    """Settings of all sources, where an option that was not given (None) says nothing.

    Raises:
        ConfigError: see :func:`~hivemind_p2p.config_sources.load_settings`.
    """
    return load_settings({key: value for key, value in options.items() if value is not None}, toml_path=config)


def for_serving(settings: Settings) -> Settings:
    """What nobody decided, as it is for a command that goes on until it is stopped."""
    control, nat = settings.control, settings.nat
    if control.serve is None:
        control = replace(control, serve=True)
    if nat.mdns is None:
        nat = replace(nat, mdns=not settings.node.initial_peers)
    return replace(settings, control=control, nat=nat)
