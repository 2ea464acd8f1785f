"""Help of commands with many options: in groups, on any terminal."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand


class InGroups(TyperCommand):
    """A command whose help lists its options under the names of their ``rich_help_panel``, in the order in which these
    come first; options that have none, as ``--help``, stand with the last."""

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # click's own types
        """See :class:`click.Command`."""
        groups: dict[str, list[tuple[str, str]]] = {}
        panel = "Options"
        for option in self.get_params(ctx):
            if (record := option.get_help_record(ctx)) is not None:
                panel = getattr(option, "rich_help_panel", None) or panel
                groups.setdefault(panel, []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)
