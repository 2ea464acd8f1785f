"""Gathering the facts about how a host is reached."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import trio
from multiaddr import Multiaddr

from hivemind_p2p.nat.facts import Address, Facts, RelayInUse, Sighting, Trial
from hivemind_p2p.nat.trace import private_hops
from hivemind_p2p.transport.addresses import circuit_of, endpoint_of, interface_ips
from hivemind_p2p.transport.shared_port import CAN_SHARE

if TYPE_CHECKING:
    from hivemind_p2p.nat.service import NAT
    from hivemind_p2p.transport.host import Host


async def examine(host: Host, nat: NAT) -> Facts:
    """What a host and its NAT traversal know, and the first routers on the way to a peer that sees us."""
    now = trio.current_time()
    sightings = [
        Sighting(
            observer=each.observer.base58,
            observer_ip=_host_of(each.observer_maddr),
            ip=seen.host,
            port=seen.port,
            age=round(now - each.at, 3),
        )
        for each in nat.observed.observations(now)
        if (seen := endpoint_of(each.maddr)) is not None
    ]
    listening = [endpoint for maddr in host.listen_maddrs if (endpoint := endpoint_of(maddr)) is not None]
    own = {endpoint.host for endpoint in listening}
    outside = [
        each.observer_ip for each in sightings if each.observer_ip and _is_public4(each.ip) and each.ip not in own
    ]
    return Facts(
        peer_id=host.peer_id.base58,
        listening=tuple((endpoint.host, endpoint.port) for endpoint in listening),
        announced=tuple(map(str, host.announce_maddrs)),
        addresses=tuple(_address(nat, maddr, now) for maddr in _own_maddrs(host, nat, now)),
        sightings=tuple(sightings),
        private_hops=tuple(await private_hops(outside[-1])) if outside else (),
        relays=tuple(RelayInUse(relay.base58, tuple(map(str, it.maddrs))) for relay, it in nat.keeper.held.items()),
        relays_wanted=nat.keeper.wanted,
        is_relay=nat.service.serving,
        port_mapping=nat.mapping.state,
        mapped=str(nat.mapping.held.maddr) if nat.mapping.held is not None else "",
        ipv6=tuple(ip for ip in interface_ips() if ":" in ip and ipaddress.ip_address(ip).is_global),
        shares_port=CAN_SHARE,
    )


def _own_maddrs(host: Host, nat: NAT, now: float) -> list[Multiaddr]:
    """Where we listen, what we announce, and what else a peer has tried."""
    known = [*host.listen_maddrs, *host.announce_maddrs, *nat.autonat.reachability.maddrs(now)]
    return [maddr for maddr in dict.fromkeys(known) if circuit_of(maddr) is None]


def _address(nat: NAT, maddr: Multiaddr, now: float) -> Address:
    reachability = nat.autonat.reachability
    trials = [
        Trial(each.observer.base58, each.reached, round(now - each.at, 3), each.version)
        for each in reachability.evidence(maddr, now)
    ]
    return Address(str(maddr), reachability.verdict(maddr, now).value, tuple(trials))


def _host_of(maddr: Multiaddr | None) -> str:
    endpoint = endpoint_of(maddr) if maddr is not None else None
    return endpoint.host if endpoint is not None else ""


def _is_public4(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    return address.version == 4 and address.is_global
