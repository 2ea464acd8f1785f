"""What is known about how we are reached, gathered for people and programs to look at. Pure: nothing but data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sighting:
    """Where one peer sees us. Ages are in seconds."""

    observer: str
    """Its peer id."""
    observer_ip: str
    """Where we dialled it; empty: it dialled us."""
    ip: str
    port: int
    age: float


@dataclass(frozen=True)
class Trial:
    """What one peer found when it dialled one of our addresses from a fresh port (AutoNAT)."""

    observer: str
    reached: bool
    age: float
    autonat: int = 1
    """The version of the protocol. 1: the peer says so; 2: that it got in, it proved."""


@dataclass(frozen=True)
class Address:
    """One address that others may know of us."""

    maddr: str
    verdict: str
    """``reachable``, ``unreachable`` or ``unknown``."""
    trials: tuple[Trial, ...] = ()
    """Who found that."""


@dataclass(frozen=True)
class RelayInUse:
    """One relay that connects others to us."""

    peer_id: str
    maddrs: tuple[str, ...]
    """Our addresses through it."""


@dataclass(frozen=True)
class Facts:
    """One node at one moment."""

    peer_id: str = ""
    listening: tuple[tuple[str, int], ...] = ()
    """IP addresses of this machine and the ports that we listen on there."""
    fixed_port: int = 0
    """The port to listen on as it was set; 0: a different one at each start."""
    announced: tuple[str, ...] = ()
    """Addresses that the user has us announce."""
    addresses: tuple[Address, ...] = ()
    sightings: tuple[Sighting, ...] = ()
    private_hops: tuple[str, ...] = ()
    """Routers in private networks on the way out, the nearest first."""
    relays: tuple[RelayInUse, ...] = ()
    relays_wanted: int = 0
    is_relay: bool = False
    """Whether we connect others."""
    port_mapping: str = ""
    """What became of asking the router for a port, in words; empty: it was not asked."""
    mapped: str = ""
    """The address outside that the router forwards to us."""
    ipv6: tuple[str, ...] = ()
    """Global IPv6 addresses of this machine."""
    clock_offset: float | None = None
    """Seconds by which the clocks of most peers are ahead of ours; None: nobody was asked."""
    direct_peers: int = 0
    relayed_peers: int = 0
    shares_port: bool = True
    """Whether listening and dialling use one port, which punching holes needs."""
    problem: str = ""
    """Why the swarm was not joined."""

    @property
    def forwarded(self) -> str:
        """An address that a router forwards to us, as the user or the router says, and a peer found; empty: none."""
        found = (each.maddr for each in self.addresses if each.verdict == "reachable")
        return next((maddr for maddr in found if maddr == self.mapped or maddr in self.announced), "")
