"""Which of our addresses others can dial: what peers found who tried, and when. Pure: time is passed in.

Three-valued per address. Every peer has one say, its latest; what is old counts no more. One success makes an address
reachable unless more peers failed there: a peer behind a firewall of its own fails everywhere.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from multiaddr import Multiaddr

from hivemind_p2p.wire.peer_id import PeerID

_MOST_ADDRESSES: Final = 16
_MOST_OBSERVERS: Final = 16


class Verdict(enum.Enum):
    """Whether others can dial an address."""

    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Evidence:
    """What one peer found when it tried."""

    observer: PeerID
    reached: bool
    at: float
    """``trio.current_time``."""
    version: int = 1
    """Of AutoNAT. 1: it says so; 2: that it got in, it proved."""


class Reachability:
    """What is known about our addresses.

    Args:
        max_age: seconds after which a finding counts no more.
    """

    def __init__(self, *, max_age: float) -> None:
        self._max_age = max_age
        self._findings: OrderedDict[Multiaddr, OrderedDict[PeerID, Evidence]] = OrderedDict()

    def add(self, maddr: Multiaddr, observer: PeerID, reached: bool, now: float, *, version: int = 1) -> None:
        """A peer tried an address of ours."""
        findings = self._findings.setdefault(maddr, OrderedDict())
        self._findings.move_to_end(maddr)
        findings[observer] = Evidence(observer, reached, now, version)
        findings.move_to_end(observer)
        while len(findings) > _MOST_OBSERVERS:
            findings.popitem(last=False)
        while len(self._findings) > _MOST_ADDRESSES:
            self._findings.popitem(last=False)

    def evidence(self, maddr: Multiaddr, now: float) -> Sequence[Evidence]:
        """What counts about an address, the oldest first."""
        found = self._findings.get(maddr)
        return [each for each in found.values() if now - each.at <= self._max_age] if found else []

    def verdict(self, maddr: Multiaddr, now: float) -> Verdict:
        """Whether others can dial an address."""
        evidence = self.evidence(maddr, now)
        reached = sum(each.reached for each in evidence)
        if not evidence:
            return Verdict.UNKNOWN
        return Verdict.REACHABLE if 2 * reached >= len(evidence) else Verdict.UNREACHABLE

    def maddrs(self, now: float) -> Sequence[Multiaddr]:
        """The addresses about which something is known."""
        return [maddr for maddr in self._findings if self.evidence(maddr, now)]

    def forget(self) -> None:
        """The network changed: nothing of it counts any more."""
        self._findings.clear()

    def __repr__(self) -> str:
        return f"<Reachability of {len(self._findings)} addresses>"
