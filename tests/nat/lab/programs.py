"""Programs on the machines of a lab: servers as users start them, and a trainer that is told what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.nat.lab.namespaces import Host

ROOT = Path(__file__).parents[3]
READY_WITHIN = 120.0


class Program:
    """A process on one machine that prints JSON, a line each, and may be told something the same way."""

    def __init__(self, host: Host, module: str, *arguments: str) -> None:
        self._name = f"{module} on {host.name}"
        self.process = host.popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def tell(self, **order: Any) -> None:
        """Give an order; :meth:`answer` waits for what comes of it."""
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """The next line."""
        too_late = threading.Timer(READY_WITHIN, self.process.kill)
        too_late.start()
        try:
            line = self.process.stdout.readline()
        finally:
            too_late.cancel()
        assert line, f"{self._name} ended, or was killed because it said nothing for {READY_WITHIN:g} s"
        return json.loads(line)

    def ask(self, **order: Any) -> Any:
        self.tell(**order)
        return self.answer()

    def pause(self) -> None:
        """Stop it where it is, and wait until all of its threads stand still."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without warning."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()

    def stop(self) -> None:
        """End it as Ctrl-C does, and wait."""
        self.process.terminate()
        assert self.process.wait(timeout=READY_WITHIN) == 0


@contextmanager
def server(host: Host, uids: Sequence[str], *options: str, initial_peers: Sequence[str] = ()) -> Iterator[Program]:
    """``hivemind-p2p server`` on port 4001, ready; it has ``peer_id`` and ``maddrs``. Killed at the end."""
    joins = ["--initial-peers", *initial_peers] if initial_peers else []
    program = Program(
        host, "hivemind_p2p", "server", "--json", "--no-mdns", "--host-maddrs", "/ip4/0.0.0.0/tcp/4001",
        "--expert-uids", *uids, *joins, *options,
    )  # fmt: skip
    try:
        ready = program.answer()
        program.peer_id, program.maddrs = ready["peer_id"], ready["addresses"]
        yield program
    finally:
        program.kill()


@contextmanager
def trainer(host: Host, initial_peers: Sequence[str]) -> Iterator[Program]:
    """A trainer (``trainer_process``), ready; killed at the end."""
    program = Program(host, "tests.nat.lab.trainer_process", *initial_peers)
    try:
        program.answer()
        yield program
    finally:
        program.kill()
