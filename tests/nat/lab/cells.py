"""One cell of the matrix: two nodes behind NATs of two kinds, and a bootstrap peer in public that relays for them."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from tests.nat.lab.lab import Lab
from tests.nat.lab.peers import PeerFailed, peers

KINDS = (
    "none",
    "firewalled",
    "full-cone",
    "restricted",
    "port-restricted",
    "symmetric",
    "udp-blocked",
    "cgnat",
    "cgnat-symmetric",
)
_SYMMETRIC = {"symmetric", "cgnat-symmetric"}
_CLOSED = {"firewalled", "port-restricted", "udp-blocked", "cgnat"} | _SYMMETRIC
_NEVER: float = 3.5
"""Seconds for which a cell stays relayed that the network forbids to be direct."""
_PATIENCE: float = 40.0
"""Seconds that a direct connection may take where it is possible: on busy cores it may take long, but it must come."""
_numbers = itertools.count()


def can_be_direct(one: str, other: str) -> bool:
    """Whether the network allows a direct TCP connection: not when one side's port cannot be known and the other lets
    in only who comes from the very port that it dialled."""
    return not ((one in _SYMMETRIC and other in _CLOSED) or (other in _SYMMETRIC and one in _CLOSED))


@dataclass(frozen=True)
class Cell:
    """What came of one cell.

    Attributes:
        reached: seconds from the dial to the answer of a first call; None: not reached.
        direct: seconds from the dial to a direct connection; None: there was none.
        after: the path of a last call, made after everything else.
    """

    one: str
    other: str
    reached: float | None
    direct: float | None
    after: str
    error: str = ""

    @property
    def is_as_the_network_allows(self) -> bool:
        if self.reached is None:
            return False
        if can_be_direct(self.one, self.other):
            return self.direct is not None and self.after == "direct"
        return self.direct is None and self.after.startswith("relayed")

    def __str__(self) -> str:
        if self.reached is None:
            return f"not reached: {self.error}"
        direct = "never" if self.direct is None else f"after {self.direct:.2f} s"
        return f"reached after {self.reached:.2f} s, direct {direct}, in the end {self.after}"


def run_cell(one: str, other: str, *, delay_ms: float = 10, dht: bool = True) -> Cell:
    """Build a lab for one cell; the first node dials the second at the address that the second announces.

    Args:
        delay_ms: one way, of each access link; a path has two.
        dht: whole nodes, which may meet in the DHT before the dial; without, the time is that of the dial alone.
    """
    patience = _PATIENCE if can_be_direct(one, other) else _NEVER
    settings = {"nat.punch_window": 1.5, "nat.punch_rounds": 2} if not can_be_direct(one, other) else {}
    with Lab(f"c{os.getpid()}-{next(_numbers)}", delay_ms=delay_ms) as lab, peers() as start:
        try:
            public, a, b = lab.public("relay"), lab.site("a", one), lab.site("b", other)
            relay = start(public, host_maddrs=["/ip4/0.0.0.0/tcp/4001"], dht=dht)
            joined = {"initial_peers": relay.maddrs, "settings": settings, "dht": dht}
            accepting, dialling = start(b.host, **joined), start(a.host, **joined)
            reached, direct = dialling.ask("until_direct", accepting.address, patience)
            return Cell(one, other, reached, direct, dialling.ask("call", accepting.peer_id))
        except PeerFailed as error:
            return Cell(one, other, None, None, "", str(error))


def run_cells(
    pairs: Iterable[tuple[str, str]], *, parallel: int = 6, run: Callable[[str, str], Cell] = run_cell
) -> Iterator[Cell]:
    """Run cells, several at once; each as it is done."""
    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(run, *pair) for pair in pairs]
        for future in as_completed(futures):
            yield future.result()


def median(times: Iterable[float | None]) -> float | None:
    """The median of those that there are."""
    known = [time for time in times if time is not None]
    return statistics.median(known) if known else None
