"""What happens in a DHT node, for whoever measures: pass ``trace`` to :class:`hivemind_p2p.DHTNode`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class LookupEnded:
    """One lookup on the network.

    Attributes:
        targets: ids that were looked for.
        requests: peers that were asked.
        failures: of those, how many did not answer.
        hops: how many peers in a row answered, each named by the one before; the longest row.
        seconds: how long it took.
    """

    targets: int
    requests: int
    failures: int
    hops: int
    seconds: float


DHTTrace: TypeAlias = Callable[[LookupEnded], None]
