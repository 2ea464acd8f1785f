"""What all benchmarks share: samples with a unit, a table of medians side by side, and the same as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
INTEROP_PYTHON = ROOT / ".venv-interop" / "bin" / "python"


@dataclass
class Row:
    """One thing measured on several systems: ``samples[system]`` in ``unit``; ``better`` is "lower" or "higher".

    With ``tail``, tables show p99.9, too.
    """

    name: str
    unit: str
    better: str = "lower"
    samples: dict[str, list[float]] = field(default_factory=dict)
    tail: bool = False

    def add(self, system: str, *values: float) -> None:
        """Take more samples of one system."""
        self.samples.setdefault(system, []).extend(values)

    def median(self, system: str) -> float | None:
        """The median of a system's samples; None when there are none."""
        values = self.samples.get(system)
        return statistics.median(values) if values else None

    def p99(self, system: str) -> float | None:
        """The 99th percentile; None below 20 samples, where it would only be the maximum under another name."""
        values = self.samples.get(system, [])
        return statistics.quantiles(values, n=100)[98] if len(values) >= 20 else None

    def p999(self, system: str) -> float | None:
        """The 99.9th percentile; None below 1000 samples."""
        values = self.samples.get(system, [])
        return statistics.quantiles(values, n=1000)[998] if len(values) >= 1000 else None

    def ratio(self, ours: str, theirs: str) -> float | None:
        """How many times better the first system is, by medians."""
        one, other = self.median(ours), self.median(theirs)
        if not one or not other:
            return None
        return other / one if self.better == "lower" else one / other


def options(description: str) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    parser.add_argument("--only", choices=["ours", "hivemind"], help="measure one system only")
    return parser


def systems(only: str | None) -> list[str]:
    """The systems to compare: ours, and hivemind where its environment was made."""
    if only:
        return [only]
    if INTEROP_PYTHON.exists():
        return ["ours", "hivemind"]
    Console(stderr=True).print("hivemind is not here to compare with; `scripts/setup --interop` installs it")
    return ["ours"]


def publish(title: str, rows: list[Row], json_path: Path | None) -> None:
    """Print the table of medians (with p99 where there are enough samples), and write the JSON."""
    names = list(dict.fromkeys(system for row in rows for system in row.samples))
    table = Table(title=title, caption=f"medians; {os.cpu_count()} cores, Python {platform.python_version()}")
    table.add_column("")
    for system in names:
        table.add_column(system, justify="right")
    if len(names) > 1:
        table.add_column(f"{names[0]} is better by", justify="right")
    for row in rows:
        cells = [_cell(row, system) for system in names]
        if len(names) > 1:
            ratios = [ratio for other in names[1:] if (ratio := row.ratio(names[0], other)) is not None]
            cells.append("  ".join(f"{ratio:.2f}x" for ratio in ratios))
        table.add_row(f"{row.name}, {row.unit}", *cells)
    Console(width=None if Console().is_terminal else 120).print(table)
    if json_path is not None:
        data = {"title": title, "cores": os.cpu_count(), "python": platform.python_version()}
        medians = [{system: row.median(system) for system in names} for row in rows]
        results = [{**asdict(row), "medians": values} for row, values in zip(rows, medians, strict=True)]
        json_path.write_text(json.dumps({**data, "rows": results}, indent=1) + "\n")


def markdown(rows: list[Row]) -> str:
    """The table of medians (with p99 where there are enough samples), in Markdown."""
    names = list(dict.fromkeys(system for row in rows for system in row.samples))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    lines += [
        f"| {row.name}, {row.unit} | " + " | ".join(_cell(row, system) for system in names) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def _cell(row: Row, system: str) -> str:
    median, p99 = row.median(system), row.p99(system)
    if median is None:
        return "-"
    tail = row.p999(system) if row.tail else None
    percentiles = [f"{name} {value:,.4g}" for name, value in (("p99", p99), ("p99.9", tail)) if value is not None]
    return f"{median:,.4g}" + (f" ({', '.join(percentiles)})" if percentiles else "")
