"""Where the processes of the demo live: all on this machine's loopback, or each behind a NAT of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.nat.lab.lab import Lab
from tests.nat.lab.namespaces import Host, in_netns, why_unavailable

ACCESS_DELAY_MS = 5.0


@dataclass(frozen=True)
class Place:
    """One machine of the demo.

    Attributes:
        network: in words, for the screen.
        host: of the laboratory; None: this machine itself.
        listen: ``--host-maddrs``; None: the command's default.
    """

    network: str
    host: Host | None = None
    listen: str | None = None

    def command(self, arguments: Sequence[str]) -> list[str]:
        """What starts a process there."""
        return list(arguments) if self.host is None else self.host.argv(arguments)


@dataclass(frozen=True)
class Places:
    """The bootstrap peer's machine, and those of the servers."""

    bootstrap: Place
    servers: Sequence[Place]


@contextmanager
def on_loopback() -> Iterator[Places]:
    """Everything on this machine, listening on 127.0.0.1."""
    here = Place("this machine", listen="/ip4/127.0.0.1/tcp/0")
    yield Places(here, (here, here))


@contextmanager
def behind_nats() -> Iterator[Places]:
    """The bootstrap peer in public, each server behind a NAT, and the calling thread (the trainer) behind a third.

    A laboratory of network namespaces, 5 ms one way per access link, so 20 ms of round trip and twice that through the
    bootstrap peer. Threads and processes that are started inside live where the caller does.

    Raises:
        SystemExit: no laboratory can be built here.
    """
    if reason := why_unavailable():
        raise SystemExit(f"--behind-nat builds networks of its own on this machine, and that {reason}")
    with Lab(f"demo{os.getpid()}", delay_ms=ACCESS_DELAY_MS) as lab:
        bootstrap = Place("public", lab.public("relay"), "/ip4/0.0.0.0/tcp/31337")
        servers = [
            Place(f"behind a {kind} NAT", lab.site(name, kind).host)
            for name, kind in (("one", "port-restricted"), ("two", "cgnat"))
        ]
        with in_netns(lab.site("trainer", "restricted").host.ns):
            yield Places(bootstrap, servers)
