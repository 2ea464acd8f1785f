"""The time that a swarm goes by, and how far the clocks of peers are from ours."""

from __future__ import annotations

import logging
import statistics
import time
from collections import OrderedDict
from typing import Final

from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
_PEERS: Final = 64
_ENOUGH: Final = 3


def get_dht_time() -> float:
    """Unix time in seconds. Peers' clocks agree within a few seconds; expiration times are in it."""
    return time.time()


class ClockOffsets:
    """What the last peers that we pinged said of the time. Wrong is whoever is alone with it.

    Args:
        worrying: seconds of difference to most peers that are worth a warning.
    """

    def __init__(self, worrying: float) -> None:
        self._worrying = worrying
        self._offsets: OrderedDict[PeerID, float] = OrderedDict()
        self._warned = False

    def add(self, peer: PeerID, offset: float) -> None:
        """A peer's clock is so many seconds ahead of ours."""
        self._offsets.pop(peer, None)
        self._offsets[peer] = offset
        if len(self._offsets) > _PEERS:
            self._offsets.popitem(last=False)
        median = self.median
        is_off = median is not None and len(self._offsets) >= _ENOUGH and abs(median) > self._worrying
        if is_off and not self._warned:
            logger.warning(
                "the clocks of %d peers are %+.1f s from ours (median): records expire early or late; set the clock",
                len(self._offsets),
                median,
            )
        self._warned = is_off

    @property
    def median(self) -> float | None:
        """Seconds by which most peers' clocks are ahead of ours; None before anybody was asked."""
        return statistics.median(self._offsets.values()) if self._offsets else None

    def __repr__(self) -> str:
        return f"<ClockOffsets of {len(self._offsets)} peers, median {self.median}>"
