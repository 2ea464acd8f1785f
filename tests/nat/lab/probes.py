"""What a NAT really does, measured from outside it: mapping and filtering, for UDP and TCP."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from tests.nat.lab.lab import Lab, Site
from tests.nat.lab.namespaces import Host


class Reflectors:
    """Two public hosts with two UDP and two TCP ports each that tell callers their address: STUN in miniature."""

    def __init__(self, lab: Lab, ports: Sequence[int] = (7001, 7002)):
        self.lab = lab
        self.hosts = [lab.hosts.get(name) or lab.public(name) for name in ("stun1", "stun2")]
        self.udp, self.tcp = {}, {}
        for host, port in itertools.product(self.hosts, ports):
            self.udp[host.ip, port] = host.socket(socket.SOCK_DGRAM, port)
            listener = host.socket(socket.SOCK_STREAM, port)
            listener.listen(32)
            self.tcp[host.ip, port] = listener
        self.keys = list(self.udp)  # [h1p1, h1p2, h2p1, h2p2]

    def udp_mapping(self, sock: socket.socket, key: tuple) -> tuple | None:
        sock.sendto(b"?", key)
        self.udp[key].settimeout(0.5 + 0.01 * self.lab.delay_ms)
        try:
            return self.udp[key].recvfrom(64)[1]
        except OSError:
            return None

    def tcp_mapping(self, host: Host, port: int, key: tuple) -> tuple:
        """-> (connection from host:port, the address seen by the reflector) or (None, None)"""
        sock = host.socket(socket.SOCK_STREAM, port, timeout=1.0 + 0.01 * self.lab.delay_ms)
        try:
            sock.connect(key)
            self.tcp[key].settimeout(1)
            peer, addr = self.tcp[key].accept()
            peer.close()
            return sock, addr
        except OSError:
            sock.close()
            return None, None

    def close(self) -> None:
        for sock in (*self.udp.values(), *self.tcp.values()):
            sock.close()

    def __enter__(self) -> Reflectors:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


_ports = itertools.count(5000)


def _behaviour(seen: Sequence) -> str:
    first, other_port, other_ip = seen
    if first is None:
        return "blocked"
    if first == other_port == other_ip:
        return "EI"
    return "AD" if first == other_port else "APD"


def probe(lab: Lab, target, reflectors: Reflectors | None = None) -> dict:
    """Measures the mapping and filtering of the NAT in front of a host (or of a site's first host)."""
    host = target.host if isinstance(target, Site) else target
    own = reflectors is None
    refl = reflectors or Reflectors(lab)
    h1p1, h1p2, h2p1, _ = refl.keys
    wait = 0.3 + 0.006 * lab.delay_ms
    result: dict = {}

    # UDP mapping: one local port, three destinations; filtering: fresh port, one destination, answers from others
    port = next(_ports)
    with host.socket(socket.SOCK_DGRAM, port) as sock:
        seen = [refl.udp_mapping(sock, key) for key in (h1p1, h1p2, h2p1)]
    result["udp_mapping"] = _behaviour(seen)
    result["udp_preserves_port"] = seen[0] is not None and seen[0][1] == port
    port = next(_ports)
    with host.socket(socket.SOCK_DGRAM, port, timeout=wait) as sock:
        mapped = refl.udp_mapping(sock, h1p1)

        def answered(key) -> bool:
            token = os.urandom(8)
            refl.udp[key].sendto(token, mapped)
            try:
                return sock.recv(64) == token
            except OSError:
                return False

        if mapped is None:
            result["udp_filtering"] = "blocked"
        else:
            result["udp_filtering"] = (
                "EI" if answered(h2p1) else "AD" if answered(h1p2) else "APD" if answered(h1p1) else "dead"
            )
    # was the port reachable with nothing sent before?
    port = next(_ports)
    with host.socket(socket.SOCK_DGRAM, port, timeout=wait) as sock:
        mapped = (host.site.public_ip if host.site else host.ip, port)
        result["udp_unsolicited"] = False
        refl.udp[h1p1].sendto(b"hello", mapped)
        with suppress(OSError):
            result["udp_unsolicited"] = sock.recv(64) == b"hello"

    # TCP
    port = next(_ports)
    conns, seen = [], []
    for key in (h1p1, h1p2, h2p1):
        conn, addr = refl.tcp_mapping(host, port, key)
        conns.append(conn)
        seen.append(addr)
    result["tcp_mapping"] = _behaviour(seen)
    result["tcp_preserves_port"] = seen[0] is not None and seen[0][1] == port
    for conn in conns:
        if conn:
            conn.close()

    def inbound(source: Host, addr: tuple, listener: socket.socket) -> str:
        with source.socket(socket.SOCK_STREAM, next(_ports), timeout=wait) as out:
            try:
                out.connect(addr)
                listener.settimeout(wait)
                listener.accept()[0].close()
                return "open"
            except ConnectionRefusedError:
                return "refused"
            except OSError:
                return "dropped"

    port = next(_ports)
    with host.socket(socket.SOCK_STREAM, port) as listener:
        listener.listen(8)
        result["tcp_unsolicited"] = inbound(refl.hosts[0], (mapped[0], port), listener)
    port = next(_ports)
    with host.socket(socket.SOCK_STREAM, port) as listener:
        listener.listen(8)
        conn, addr = refl.tcp_mapping(host, port, h1p1)
        if addr is None:
            result["tcp_filtering"] = "blocked"
        else:
            result["tcp_filtering"] = (
                "EI"
                if inbound(refl.hosts[1], addr, listener) == "open"
                else "AD"
                if inbound(refl.hosts[0], addr, listener) == "open"
                else "APD"
            )
            conn.close()
    if own:
        refl.close()
    return result


EXPECTED = {  # kind: (udp mapping, udp filtering, tcp mapping, tcp filtering, unsolicited inbound)
    "none": ("EI", "EI", "EI", "EI", True),
    "firewalled": ("EI", "APD", "EI", "APD", False),
    "full-cone": ("EI", "EI", "EI", "EI", False),
    "restricted": ("EI", "AD", "EI", "AD", False),
    "port-restricted": ("EI", "APD", "EI", "APD", False),
    "symmetric": ("APD", "APD", "APD", "APD", False),
    "udp-blocked": ("blocked", "blocked", "EI", "APD", False),
    "hairpin": ("EI", "APD", "EI", "APD", False),
    "cgnat": ("EI", "APD", "EI", "APD", False),
    "cgnat-symmetric": ("APD", "APD", "APD", "APD", False),
    "reject": ("EI", "APD", "EI", "APD", False),
}


def check(lab: Lab, site: Site, reflectors: Reflectors | None = None) -> dict:
    """Probes a site and raises AssertionError if its NAT does not behave as its kind says."""
    got = probe(lab, site, reflectors)
    found = (got["udp_mapping"], got["udp_filtering"], got["tcp_mapping"], got["tcp_filtering"], got["udp_unsolicited"])
    assert found == EXPECTED[site.kind], f"{site.name} ({site.kind}): expected {EXPECTED[site.kind]}, got {got}"
    assert (got["tcp_unsolicited"] == "open") == EXPECTED[site.kind][4], got
    if site.kind == "reject":
        assert got["tcp_unsolicited"] == "refused", got
    return got


def hairpins(lab: Lab, site: Site, refl: Reflectors) -> bool:
    """Does a site of two hosts carry UDP from one to the other at the public address?"""
    a, b = site.hosts[:2]
    port = next(_ports)
    with b.socket(socket.SOCK_DGRAM, port, timeout=0.3) as inner, a.socket(socket.SOCK_DGRAM, next(_ports)) as outer:
        mapped = refl.udp_mapping(inner, refl.keys[0])
        refl.udp_mapping(outer, refl.keys[0])
        outer.sendto(b"hairpin", mapped)
        try:
            return inner.recvfrom(64)[1][0] == site.public_ip
        except OSError:
            return False
