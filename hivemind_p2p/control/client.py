"""The asker's side: every node of this user that runs here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from hivemind_p2p.control.place import check, directory_of
from hivemind_p2p.control.server import read_line
from hivemind_p2p.errors import ControlError

_LONGEST_ANSWER: Final = 64 * 2**20


@dataclass(frozen=True)
class Answer:
    """What one running node said."""

    peer_id: str
    pid: int
    answer: Any
    error: str = ""
    """Why it did not answer the question, if it did not; then ``answer`` is None."""


async def ask_all(question: str, *, directory: Path | None = None, timeout: float = 30.0) -> list[Answer]:
    """Ask every node of this user that runs on this machine; sockets that nobody listens at any more say nothing.

    Raises:
        ControlError: the folder with the sockets could be somebody else's work.
    """
    place = directory_of(directory)
    try:
        check(place)
        paths = sorted(place.glob("*.sock"))
    except OSError:
        return []
    answers: list[Answer] = []

    async def ask(path: Path) -> None:
        if (answer := await _ask(path, question, timeout)) is not None:
            answers.append(answer)

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(ask, path)
    return sorted(answers, key=lambda answer: answer.peer_id)


async def _ask(path: Path, question: str, timeout: float) -> Answer | None:
    try:
        stream = await trio.open_unix_socket(str(path))
    except OSError:
        return None
    try:
        async with stream:
            with trio.fail_after(timeout):
                await stream.send_all(json.dumps({"ask": question}).encode() + b"\n")
                told = json.loads(await read_line(stream, _LONGEST_ANSWER))
    except trio.TooSlowError:
        raise ControlError(f"the node at {path} did not answer within {timeout:g} s") from None
    except (trio.BrokenResourceError, ValueError):
        return None  # it ended while it was asked
    return Answer(told.get("peer_id", ""), told.get("pid", 0), told.get("answer"), told.get("error", ""))
