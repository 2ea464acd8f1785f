"""What the facts mean: the kind of NAT, a verdict in one line, and what to do. Pure.

The kinds are those of RFC 4787, as far as TCP connections to peers can tell them apart:

- The *mapping* is told by peers that we dialled from one port: they all see the same port outside, or different ones.
- The *filtering* is told by AutoNAT: a peer whose IP we know dials us from a port that we never dialled. Who is let in
  then may be anybody (full cone), or only who comes from a known IP (address-restricted): that would take a stranger.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import asdict, dataclass
from typing import Any

from hivemind_p2p.nat.advice import steps_for
from hivemind_p2p.nat.facts import Facts, Sighting


class Kind(enum.Enum):
    """What is between us and the others."""

    PUBLIC = "public"
    FIREWALLED = "firewalled"
    CONE = "cone"
    PORT_RESTRICTED = "port-restricted"
    SYMMETRIC = "symmetric"
    NAT = "nat"
    LOCAL = "local"
    UNKNOWN = "unknown"


IN_WORDS = {
    Kind.PUBLIC: "none: this machine has a public address, and others get in",
    Kind.FIREWALLED: "none: this machine has a public address, but a firewall keeps others out",
    Kind.CONE: "full cone or address-restricted: one port outside for all, open at least to every IP that was dialled",
    Kind.PORT_RESTRICTED: "port-restricted: one port outside for all, open only to the very ports that were dialled",
    Kind.SYMMETRIC: "symmetric: another port outside for every peer that is dialled",
    Kind.NAT: "a NAT with one port outside for all; whom it lets in is not known",
    Kind.LOCAL: "unknown: all peers that we dialled are in our own network",
    Kind.UNKNOWN: "unknown: no peer has said yet where it sees us",
}


class Grade(enum.Enum):
    """How well others reach us."""

    GOOD = "good"
    FAIR = "fair"
    BAD = "bad"


@dataclass(frozen=True)
class Diagnosis:
    """What is the matter."""

    kind: Kind
    certain: bool
    """Whether enough peers have spoken."""
    behind_carrier: bool
    """Whether the provider has a NAT of its own in front of ours."""
    public_ip: str
    """Where we are seen; empty: nobody said."""
    grade: Grade
    verdict: str
    """One line."""
    steps: tuple[str, ...]
    """What to do, if something is wrong or could be better."""

    @property
    def in_words(self) -> str:
        """The kind, for people."""
        carrier = "; behind another NAT, the provider's or a second router's" if self.behind_carrier else ""
        return ("" if self.certain else "probably ") + IN_WORDS[self.kind] + carrier


def diagnose(facts: Facts) -> Diagnosis:
    """Judge."""
    kind, certain = kind_of(facts)
    public = [each for each in facts.sightings if _is_global(each.ip)]
    public_ip = public[-1].ip if public else ""
    carrier = kind not in (Kind.PUBLIC, Kind.FIREWALLED) and behind_carrier(facts)
    grade, verdict = _verdict(facts, kind)
    return Diagnosis(
        kind=kind,
        certain=certain,
        behind_carrier=carrier,
        public_ip=public_ip,
        grade=grade,
        verdict=verdict,
        steps=tuple(steps_for(facts, kind.value, public_ip=public_ip, behind_carrier=carrier)),
    )


def health_as_json(facts: Facts, diagnosis: Diagnosis) -> dict[str, Any]:
    """Both in strings and numbers. Times are in seconds."""
    return {
        "verdict": diagnosis.verdict,
        "grade": diagnosis.grade.value,
        "nat": {
            "kind": diagnosis.kind.value,
            "certain": diagnosis.certain,
            "behind_carrier": diagnosis.behind_carrier,
            "in_words": diagnosis.in_words,
        },
        "public_ip": diagnosis.public_ip or None,
        "steps": list(diagnosis.steps),
        **asdict(facts),
    }


def kind_of(facts: Facts) -> tuple[Kind, bool]:
    """The kind, and whether it is certain."""
    public = [each for each in facts.sightings if _is_global(each.ip)]
    if not facts.sightings:
        return Kind.UNKNOWN, True
    if not public:
        return Kind.LOCAL, True
    own = {ip for ip, _ in facts.listening}
    tried = {
        address.verdict == "reachable"
        for address in facts.addresses
        if address.verdict != "unknown"
        and address.maddr not in (facts.mapped, *facts.announced)
        and any(f"/{each.ip}/" in address.maddr for each in public)
    }
    if all(each.ip in own for each in public):
        return (Kind.PUBLIC if True in tried else Kind.FIREWALLED if tried else Kind.PUBLIC), bool(tried)
    behind = [each for each in public if each.ip not in own]
    same, certain = _mapping(behind, {port for _, port in facts.listening})
    if same is False:
        return Kind.SYMMETRIC, certain
    if not tried:
        return Kind.NAT, True
    return (Kind.CONE if True in tried else Kind.PORT_RESTRICTED), certain


def behind_carrier(facts: Facts) -> bool:
    """Whether there is a second NAT beyond our own: an address of the shared range of providers (RFC 6598) on the way,
    or a second private network behind the first."""
    shared = ipaddress.ip_network("100.64.0.0/10")
    on_the_way = [ipaddress.ip_address(hop) for hop in facts.private_hops]
    own = [ipaddress.ip_address(ip) for ip, _ in facts.listening]
    return any(ip in shared for ip in [*on_the_way, *own]) or len(on_the_way) > 1


def _mapping(sightings: list[Sighting], own_ports: set[int]) -> tuple[bool | None, bool]:
    """Whether all peers see one port, and whether that is certain. Only those that we dialled count, one for each of
    their IPs: that is what it takes to tell."""
    by_ip = {each.observer_ip: each for each in sightings if each.observer_ip}
    if not by_ip:
        return None, False
    ports = {each.port for each in by_ip.values()}
    if len(by_ip) > 1:
        return len(ports) == 1, True
    return bool(ports & own_ports), False  # a NAT that keeps ports is hardly ever a symmetric one


def _verdict(facts: Facts, kind: Kind) -> tuple[Grade, str]:
    if facts.problem:
        return Grade.BAD, "This node could not join the swarm."
    if facts.clock_offset is not None and abs(facts.clock_offset) > 3:
        return Grade.BAD, f"The clock is {-facts.clock_offset:+.1f} s off: other peers reject what this one stores."
    reachable = [address.maddr for address in facts.addresses if address.verdict == "reachable"]
    relays = len(facts.relays)
    through = f"{relays} relay{'s'[: relays != 1]}"
    if kind is Kind.PUBLIC and reachable:
        return Grade.GOOD, f"Others reach this node directly at {reachable[0]}."
    if facts.forwarded:
        return Grade.GOOD, f"Others reach this node directly at {facts.forwarded}, which the router forwards."
    if kind is Kind.LOCAL:
        return Grade.FAIR, "This node knows no peer outside its own network."
    if kind is Kind.UNKNOWN:
        return Grade.FAIR, "This node knows no peer that could tell how it is reached."
    if kind is Kind.PUBLIC:
        return Grade.FAIR, "This machine has a public address, but no peer has tried yet to dial it."
    if not relays:
        return Grade.BAD, "Nobody can dial this node: others are kept out, and no relay connects them to it."
    if kind is Kind.FIREWALLED:
        return Grade.FAIR, f"A firewall keeps others out: they come through {through}, and directly a moment later."
    if kind is Kind.SYMMETRIC:
        return Grade.FAIR, (
            f"Others come through {through}; directly only those that are public or behind an easy NAT: this one is "
            "symmetric."
        )
    if not facts.shares_port:
        return (
            Grade.FAIR,
            f"Others come through {through} only: this system cannot share a port, as hole punching must.",
        )
    return Grade.GOOD, f"Others come through {through}, and directly a moment later: holes can be punched in this NAT."


def _is_global(ip: str) -> bool:
    return ipaddress.ip_address(ip).is_global
