"""A peer of somebody else's software, as a process that takes commands.

Lines of JSON: ``{"id": 1, "do": "ping", ...}`` in, ``{"id": 1, "result": ...}`` or ``{"id": 1, "error": "..."}`` out;
before them ``{"peer_id": ..., "maddrs": [...]}``, when it is ready.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from concurrent.futures import Future
from typing import Any

import trio
from multiaddr import Multiaddr

from hivemind_p2p.wire.peer_id import PeerID

PATIENCE = 60.0


class ForeignProcess:
    """The process, and what it is asked to do.

    Args:
        process: with text pipes to its standard input and output.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._numbers = itertools.count()
        self._answers: dict[int, Future[Any]] = {}
        threading.Thread(target=self._read, daemon=True).start()

    async def do(self, command: str, **arguments: Any) -> Any:
        """Run a command there; its result. Raises RuntimeError with what went wrong there."""
        answer = self._tell(command, arguments)
        return await trio.to_thread.run_sync(answer.result, PATIENCE, abandon_on_cancel=True)

    def ask(self, command: str, **arguments: Any) -> Any:
        """The same for tests that are not asynchronous."""
        return self._tell(command, arguments).result(PATIENCE)

    def _tell(self, command: str, arguments: dict[str, Any]) -> Future[Any]:
        number, answer = next(self._numbers), Future()
        self._answers[number] = answer
        self._process.stdin.write(json.dumps({"id": number, "do": command, **arguments}) + "\n")
        self._process.stdin.flush()
        return answer

    def _read(self) -> None:
        for line in self._process.stdout:
            answer = json.loads(line)
            future = self._answers.pop(answer["id"])
            if "error" in answer:
                future.set_exception(RuntimeError(answer["error"]))
            else:
                future.set_result(answer["result"])
        for future in self._answers.values():
            future.set_exception(RuntimeError("the process ended; its stderr may say why"))


class ForeignPeer(ForeignProcess):
    """One peer in a process of its own.

    Args:
        ready: the line that it wrote when it was ready.
    """

    def __init__(self, process: subprocess.Popen[str], ready: str) -> None:
        super().__init__(process)
        said = json.loads(ready)
        self.peer_id = PeerID.from_base58(said["peer_id"])
        self.maddrs = [Multiaddr(maddr) for maddr in said["maddrs"]]

    @property
    def maddr(self) -> Multiaddr:
        """The first of its addresses."""
        return self.maddrs[0]
