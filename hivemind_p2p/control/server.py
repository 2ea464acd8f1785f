"""The node's side: one question a connection, one answer, both one line of JSON."""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio

from hivemind_p2p.background import Background
from hivemind_p2p.control.place import directory_of, prepare, socket_path
from hivemind_p2p.errors import ControlError, HivemindError
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
Answers = Mapping[str, Callable[[], Awaitable[Any]]]
_LONGEST_QUESTION: Final = 1024
_ASKERS: Final = 8
_PATIENCE: Final = 30.0
"""Seconds that a question and its answer may take."""


class ControlServer(Background):
    """Answers questions about one node on this machine: ``async with ControlServer(peer_id, answers)``.

    A node whose socket cannot be made works all the same; a warning says why.

    Args:
        answers: by question, what gives the answer: anything that JSON takes.
        directory: where the socket goes; None: the user's own place.
    """

    def __init__(self, peer_id: PeerID, answers: Answers, *, directory: Path | None = None) -> None:
        self.path: Path | None = None
        """The socket, while there is one."""
        self._peer_id = peer_id
        self._answers = answers
        self._directory = directory
        self._room = trio.CapacityLimiter(_ASKERS)

    async def _begin(self, nursery: trio.Nursery) -> None:
        try:
            listener = await self._listen()
        except ControlError as error:
            logger.warning("`hivemind-p2p peers` and `doctor` cannot ask this node: %s", error)
        else:
            nursery.start_soon(trio.serve_listeners, self._serve, [listener])

    async def _end(self) -> None:
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()
            self.path = None

    async def _listen(self) -> trio.SocketListener:
        if not hasattr(socket, "AF_UNIX"):
            raise ControlError("this system has no Unix sockets")
        directory = directory_of(self._directory)
        prepare(directory)
        path = socket_path(directory, self._peer_id)
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        new = path.with_suffix(".new")
        try:
            await _remove_dead(list(directory.glob("*.sock")))
            if path.exists():
                raise ControlError(f"another process runs as {self._peer_id} and answers at {path}")
            new.unlink(missing_ok=True)
            await sock.bind(str(new))
            new.chmod(0o600)
            sock.listen(_ASKERS)
            new.rename(path)  # only now, so that one where nobody listens is known to be dead
        except OSError as error:
            sock.close()
            raise ControlError(f"{path} cannot be listened on: {error.strerror}") from None
        except BaseException:
            sock.close()
            raise
        self.path = path
        return trio.SocketListener(sock)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with self._room, stream:
            with trio.move_on_after(_PATIENCE), suppress(trio.BrokenResourceError):
                if not may_ask(stream.socket):
                    logger.warning("somebody else than the user of this node wanted to know how it is doing")
                    return
                answer = await self._answer(await read_line(stream, _LONGEST_QUESTION))
                await stream.send_all(json.dumps(answer).encode() + b"\n")

    async def _answer(self, line: bytes) -> dict[str, Any]:
        node = {"peer_id": self._peer_id.base58, "pid": os.getpid()}
        try:
            give = self._answers[json.loads(line)["ask"]]
        except (ValueError, LookupError, TypeError, RecursionError):
            return {**node, "error": f"it only answers to {', '.join(sorted(self._answers))}; is it of this version?"}
        try:
            return {**node, "answer": await give()}
        except HivemindError as error:
            return {**node, "error": str(error)}
        except Exception as error:  # the boundary of one request
            logger.exception("the node could not say how it is doing")
            return {**node, "error": f"{type(error).__name__}: {error}"}

    def __repr__(self) -> str:
        return f"<ControlServer at {self.path or 'nothing'}, for {', '.join(sorted(self._answers))}>"


async def read_line(stream: trio.SocketStream, longest: int) -> bytes:
    """What comes up to a newline, or the end; no more than ``longest`` bytes of it."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) <= longest and (data := await stream.receive_some()):
        line += data
    return bytes(line[:longest])


def may_ask(sock: trio.socket.SocketType) -> bool:
    """Whether it is our own user, or root, who connected; where the system does not tell, the folder's mode holds."""
    if sys.platform != "linux":
        return True
    _, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user in (0, os.geteuid())


async def _remove_dead(paths: Iterable[Path]) -> None:
    """Remove the sockets of nodes that were killed."""
    for path in paths:
        try:
            stream = await trio.open_unix_socket(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.debug("%s is not answered: %s", path, error)
        else:
            await stream.aclose()
