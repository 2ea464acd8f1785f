"""Nodes in a lab: real processes in its namespaces, told what to do through a pipe.

They are forked from a server that has imported everything already, so that starting one takes milliseconds.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.nat.lab.namespaces import Host

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["tests.nat.lab.peer_process"])
PATIENCE = 60.0


class PeerFailed(Exception):
    """A peer process answered with an error, or not at all."""


class Peer:
    """One node in a lab.

    Args:
        host: where it lives.
        options: arguments of ``Node``; ``settings``: a dictionary of dotted settings; ``dht=False`` for only the host
            and what reaches it; ``look_around``: seconds between two looks of its mDNS at where it is.
    """

    def __init__(self, host: Host, **options: Any) -> None:
        from tests.nat.lab.peer_process import main

        self.host = host
        self._pipe, theirs = _forkserver.Pipe()
        self._process = _forkserver.Process(target=main, args=(theirs, host.ns, options), daemon=True)
        self._process.start()
        theirs.close()
        ready = self._receive()
        self.peer_id: str = ready["peer_id"]
        self.maddrs: list[str] = ready["maddrs"]

    @property
    def address(self) -> str:
        """Where it is reached through a relay, or else directly, as it said when it started."""
        return next((maddr for maddr in self.maddrs if "p2p-circuit" in maddr), self.maddrs[0])

    def ask(self, command: str, *args: Any) -> Any:
        """Have the node do something (see ``peer_process``), and wait for what comes of it."""
        self.tell(command, *args)
        return self.answer()

    def tell(self, command: str, *args: Any) -> None:
        """Have the node do something; :meth:`answer` waits for it."""
        self._pipe.send((command, args))

    def answer(self) -> Any:
        return self._receive()

    def _receive(self) -> Any:
        if not self._pipe.poll(PATIENCE):
            raise PeerFailed(f"{self.host.name} did not answer within {PATIENCE:g} s")
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            raise PeerFailed(f"the process of {self.host.name} ended") from None
        if failed:
            raise PeerFailed(f"{self.host.name}: {answer}")
        return answer

    def stop(self) -> None:
        """End the node cleanly."""
        self._pipe.close()
        self._process.join(PATIENCE)

    def kill(self) -> None:
        """End the process without warning."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def __repr__(self) -> str:
        return f"<Peer on {self.host.name}>"


@contextmanager
def peers() -> Iterator[Any]:
    """``start(host, **options)`` inside; all are killed at the end."""
    with ExitStack() as stack:

        def start(host: Host, **options: Any) -> Peer:
            peer = Peer(host, **options)
            stack.callback(peer.kill)
            return peer

        yield start
