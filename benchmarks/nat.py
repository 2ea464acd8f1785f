"""Reaching peers behind NATs: every pair of kinds in the laboratory of ``tests/nat`` (root, iproute2, nftables).

Times are from the dial to the answer of a first call, and to a direct connection, when both peers have their relay and
do not know each other. Tensors travel without simulated delay, which would measure the simulation.
"""

from __future__ import annotations

import itertools
import os

from rich.console import Console
from rich.table import Table

from benchmarks.report import Row, options, publish
from tests.nat.lab.cells import KINDS, Cell, can_be_direct, median, run_cell, run_cells
from tests.nat.lab.lab import Lab
from tests.nat.lab.namespaces import why_unavailable
from tests.nat.lab.peers import peers

TENSOR = 32 * 2**20
BUDGETS = {"relayed": ("symmetric", "symmetric"), "direct": ("port-restricted", "port-restricted")}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--delay", type=float, default=10.0, help="one-way delay of each access link, ms (default: 10)")
    parser.add_argument("--parallel", type=int, default=2, help="cells at once (default: 2)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="NAT kinds to pair (default: all nine)")
    parser.add_argument("--runs", type=int, default=5, help="tensors sent each way (default: 5)")
    arguments = parser.parse_args()
    if reason := why_unavailable():
        raise SystemExit(f"the laboratory cannot be built here: it {reason}")
    kinds = arguments.kinds.split(",")
    pairs = list(itertools.product(kinds, kinds))
    cells = {
        (cell.one, cell.other): cell
        for cell in run_cells(
            pairs,
            parallel=arguments.parallel,
            run=lambda one, other: run_cell(one, other, delay_ms=arguments.delay, dht=False),
        )
    }
    show(kinds, cells)
    reached, direct = Row("dial to first answer", "s"), Row("dial to direct", "s")
    reached.add("ours", *(cell.reached for cell in cells.values() if cell.reached is not None))
    direct.add("ours", *(cell.direct for cell in cells.values() if cell.direct is not None))
    rows = [reached, direct]
    for path, (one, other) in BUDGETS.items():
        row = Row(f"32 MiB {path}", "MiB/s", better="higher")
        row.add("ours", *throughput(one, other, path, arguments.runs))
        rows.append(row)
    publish("NAT traversal", rows, arguments.json)


def show(kinds: list[str], cells: dict[tuple[str, str], Cell]) -> None:
    """The matrix: seconds to a direct connection, ``relay`` where there is only that, ``LOST`` where not even that."""
    table = Table(title="from (rows) to (columns): seconds to direct")
    table.add_column("")
    for kind in kinds:
        table.add_column(kind)
    for one in kinds:
        table.add_row(one, *(_word(cells[one, other]) for other in kinds))
    reached = sum(cell.reached is not None for cell in cells.values())
    direct = sum(cell.direct is not None for cell in cells.values())
    possible = sum(can_be_direct(*pair) for pair in cells)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    console.print(f"{reached} of {len(cells)} reached, {direct} of {possible} possible ones direct")
    console.print(f"median to direct: {median(cell.direct for cell in cells.values()):.3f} s")


def _word(cell: Cell) -> str:
    if cell.reached is None:
        return "LOST"
    return "relay" if cell.direct is None else f"{cell.direct:.2f}"


def throughput(one: str, other: str, path: str, runs: int) -> list[float]:
    """MiB/s of tensors over a path, between two nodes that stay connected."""
    with Lab(f"b{os.getpid()}") as lab, peers() as start:
        relay = start(lab.public("relay"), host_maddrs=["/ip4/0.0.0.0/tcp/4001"], dht=False)
        accepting = start(lab.site("b", other).host, initial_peers=relay.maddrs, dht=False)
        dialling = start(lab.site("a", one).host, initial_peers=relay.maddrs, dht=False)
        dialling.ask("until_direct", accepting.address, 2.0)
        dialling.ask("send", accepting.peer_id, TENSOR)  # the first one opens windows
        rates = []
        for _ in range(runs):
            seconds, took = dialling.ask("send", accepting.peer_id, TENSOR)
            if not took.startswith(path):
                raise SystemExit(f"{one} to {other} went {took} instead of {path}")
            rates.append(TENSOR / 2**20 / seconds)
        return rates


if __name__ == "__main__":
    main()
