"""Raw hole punches between two hosts: what the network allows, whoever asks."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time

from tests.nat.lab.lab import Lab
from tests.nat.lab.namespaces import Host
from tests.nat.lab.probes import Reflectors

_ports = itertools.count(15000)


def punch_udp(lab: Lab, a: Host, b: Host, refl: Reflectors, seconds: float = 3.0) -> float | None:
    """A plain UDP hole punch by the addresses a reflector saw. -> seconds until both heard, or None. The receiver
    answers to the address a packet came from (which is what lets one side be symmetric)."""
    socks = [h.socket(socket.SOCK_DGRAM, next(_ports)) for h in (a, b)]
    try:
        mapped = [refl.udp_mapping(s, refl.keys[0]) for s in socks]
        if None in mapped:
            return None
        # also send to what others behind the same NAT can use
        targets = [{mapped[1]}, {mapped[0]}]
        if a.site is b.site and a.site is not None:
            targets[0].add(socks[1].getsockname())
            targets[1].add(socks[0].getsockname())
        start, heard = time.monotonic(), [False, False]
        for s in socks:
            s.setblocking(False)
        next_send = start
        while time.monotonic() - start < seconds and not all(heard):
            if time.monotonic() >= next_send:
                for s, to in zip(socks, targets, strict=False):
                    for addr in list(to):
                        with contextlib.suppress(OSError):
                            s.sendto(b"punch", addr)
                next_send += 0.1
            for s in select.select(socks, [], [], 0.05)[0]:
                me = socks.index(s)
                try:
                    data, addr = s.recvfrom(64)
                except OSError:
                    continue
                targets[me].add(addr)
                if data == b"ack":
                    heard[me] = True
                with contextlib.suppress(OSError):
                    s.sendto(b"ack", addr)
                if data == b"ack":
                    heard[1 - me] = heard[1 - me] or True
        return time.monotonic() - start if all(heard) else None
    finally:
        for s in socks:
            s.close()


def punch_tcp(lab: Lab, a: Host, b: Host, refl: Reflectors, seconds: float = 4.0, listen: bool = True) -> tuple | None:
    """TCP hole punch: both connect from the port they listen on to the address a reflector saw (redialling on
    refusal). -> (seconds, 'simultaneous' or 'accepted') or None."""
    ports = [next(_ports), next(_ports)]
    hosts, keep, mapped, listeners = [a, b], [], [], []
    try:
        for host, port in zip(hosts, ports, strict=False):
            if listen:
                s = host.socket(socket.SOCK_STREAM, port)
                s.listen(8)
                s.setblocking(False)
                listeners.append(s)
            conn, addr = refl.tcp_mapping(host, port, refl.keys[0])
            keep.append(conn)
            mapped.append(addr)
        if None in mapped:
            return None
        targets = [[mapped[1]], [mapped[0]]]
        if a.site is b.site and a.site is not None:
            targets = [[mapped[1], (b.ip, ports[1])], [mapped[0], (a.ip, ports[0])]]
        start, done = time.monotonic(), [None, None]
        live: dict = {}

        def dial(me: int, addr: tuple) -> None:
            s = hosts[me].socket(socket.SOCK_STREAM, ports[me])
            s.setblocking(False)
            try:
                s.connect(addr)
            except BlockingIOError:
                pass
            except OSError:
                s.close()
                return
            live[s] = (me, addr)

        def dial_safe(me: int, addr: tuple) -> None:
            with contextlib.suppress(OSError):
                dial(me, addr)

        for me in (0, 1):
            for addr in targets[me]:
                dial_safe(me, addr)
        while time.monotonic() - start < seconds and not all(done):
            readable, writable, _ = select.select(listeners, list(live), [], 0.05)
            for s in writable:
                me, addr = live.pop(s)
                if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    done[me] = done[me] or "simultaneous"
                    keep.append(s)
                else:
                    s.close()
                    time.sleep(0.02)
                    if not done[me]:
                        dial_safe(me, addr)
            for s in readable:
                me = listeners.index(s)
                done[me] = "accepted"
                keep.append(s.accept()[0])
        if not all(done):
            return None
        return time.monotonic() - start, "accepted" if "accepted" in done else "simultaneous"
    finally:
        for s in (*keep, *listeners, *(live if "live" in locals() else ())):
            if s is not None:
                s.close()
