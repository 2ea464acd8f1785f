"""The public switch of a lab with delay, loss or limited rate: a userspace learning switch on tap devices."""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import threading
import time
from contextlib import suppress

from tests.nat.lab.namespaces import in_netns


class TapSwitch:
    """A userspace learning switch with per-port delay, loss and rate: stands in for tc netem. Its ports are tap
    devices inside namespaces; TCP superframes pass whole (vnet header), so it is not the bottleneck."""

    TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0

    def __init__(self, loss: float = 0, rate_mbit: float = 0):
        self.loss, self.rate = loss, rate_mbit * 125000
        self.ports: dict[int, float] = {}
        self.cut: set[int] = set()
        """Ports from and to which nothing passes."""
        self.free_at: dict[int, float] = {}
        self.macs: dict[bytes, int] = {}
        self._poll = select.epoll()
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, ns: str, dev: str, delay_ms: float) -> int:
        with in_netns(ns):
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, self.TUNSETIFF, struct.pack("16sH22x", dev.encode(), 0x0002 | 0x1000 | 0x4000))
            fcntl.ioctl(fd, self.TUNSETOFFLOAD, 0x01 | 0x02)  # checksum, TSO4
        self.ports[fd] = delay_ms / 1000
        self._poll.register(fd, select.EPOLLIN)
        return fd

    def _run(self) -> None:
        queue: list = []
        order = itertools.count()
        while not self._stop:
            now = time.monotonic()
            while queue and queue[0][0] <= now:
                _, _, fd, frame = heapq.heappop(queue)
                with suppress(OSError):
                    os.write(fd, frame)
            wait = 0.2 if not queue else max(0.0, queue[0][0] - now)
            try:
                ready = self._poll.poll(wait)
            except (OSError, ValueError):
                return
            for src, _ in ready:
                for _ in range(32):
                    try:
                        frame = os.read(src, 70000)
                    except OSError:
                        break
                    now = time.monotonic()
                    self.macs[frame[16:22]] = src
                    dst = self.macs.get(frame[10:16])
                    targets = [dst] if dst is not None else [fd for fd in self.ports if fd != src]
                    if self.cut:
                        targets = [] if src in self.cut else [fd for fd in targets if fd not in self.cut]
                    start = now
                    if self.rate:
                        start = max(now, self.free_at.get(src, 0.0)) + len(frame) / self.rate
                        self.free_at[src] = start
                        if start - now > 0.25:
                            self.free_at[src] -= len(frame) / self.rate
                            continue
                    for fd in targets:
                        if self.loss and random.random() < self.loss:
                            continue
                        due = start + self.ports[src] + self.ports.get(fd, 0)
                        heapq.heappush(queue, (due, next(order), fd, frame))

    def close(self) -> None:
        self._stop = True
        self._thread.join(2)
        for fd in self.ports:
            os.close(fd)
        self._poll.close()
