"""What to do about how a node is reached, with its own addresses and ports filled in. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

from hivemind_p2p.nat.facts import Facts

_EXAMPLE_PORT: Final = 31337


def steps_for(facts: Facts, kind: str, *, public_ip: str, behind_carrier: bool) -> Iterator[str]:
    """The steps, in the order in which to take them; none when all is well.

    Args:
        kind: value of a :class:`~.diagnosis.Kind`.
        public_ip: where we are seen; empty: nobody said.
    """
    if facts.problem:
        yield from _join(facts)
        return
    if facts.clock_offset is not None and abs(facts.clock_offset) > 1.5:
        yield (
            f"Set this machine's clock, which is {-facts.clock_offset:+.1f} s off: `sudo timedatectl set-ntp true` on "
            "Linux with systemd, or any other NTP client."
        )
    if kind in ("unknown", "local"):
        yield (
            "Join a swarm that has a peer on the internet: run this again with `--initial-peers` and its address. To "
            "have one, run `hivemind-p2p bootstrap` on a machine with a public address."
        )
        return
    if kind == "public":
        if not any(address.verdict == "reachable" for address in facts.addresses):
            yield "Wait a minute and run this again: peers are asked to dial back when they are met."
        return
    if facts.forwarded or (kind in ("cone", "port-restricted", "nat") and facts.relays and facts.shares_port):
        return  # it works
    if not facts.relays:
        yield (
            "Give this node a peer that relays: `--initial-peers` with the address of a `hivemind-p2p bootstrap` on a "
            "machine with a public address."
        )
    port = facts.fixed_port or _EXAMPLE_PORT
    if facts.ipv6 and not any(":" in ip for ip, _ in facts.listening):
        yield (
            f"This machine has IPv6 ({facts.ipv6[0]}), which needs no NAT: listen there too, "
            f"`--host-maddrs /ip4/0.0.0.0/tcp/{port} /ip6/::/tcp/{port}`."
        )
    if not facts.fixed_port and kind in ("firewalled", "symmetric", "port-restricted", "cone", "nat"):
        yield (
            "To be dialled without relays, first of all listen on a fixed port: "
            f"`--host-maddrs /ip4/0.0.0.0/tcp/{port}` (now it is another one at each start)."
        )
    if kind == "firewalled":
        yield (
            f"Let TCP port {port} in: `sudo ufw allow {port}/tcp`, or `sudo firewall-cmd --permanent "
            f"--add-port={port}/tcp` and `sudo firewall-cmd --reload`; in a cloud, add it to the security group."
        )
    elif behind_carrier:
        yield (
            "Forwarding a port in your own router is not enough, since another NAT is in front of it: ask the provider "
            "for a public IPv4 address" + ("." if facts.ipv6 else ", or for IPv6.")
        )
        return
    else:
        yield from _forward(facts, port, public_ip)
    yield "Run this again: the address should then be reachable."


def _forward(facts: Facts, port: int, public_ip: str) -> Iterator[str]:
    private = [ip for ip, _ in facts.listening if "." in ip and not ipaddress.ip_address(ip).is_loopback]
    machine = private[0] if private else "this machine"
    router = facts.private_hops[0] if facts.private_hops else "the router"
    page = f" (mostly at http://{router}/)" if facts.private_hops else ""
    yield f"In the settings of the router{page}, forward TCP port {port} to {machine} port {port}, or turn on UPnP."
    if public_ip:
        yield f"If you forward it by hand, announce it: `--announce-maddrs /ip4/{public_ip}/tcp/{port}`."


def _join(facts: Facts) -> Iterator[str]:
    yield f"This is what happened: {facts.problem}"
    yield "See whether this machine is online, and whether the address is still that of the peer: ask whoever runs it."
    yield "On the peer's machine, run `hivemind-p2p doctor`: it says whether others can dial it, and what to do."
