"""Threads that wait for the portal on behalf of another one, which can end their waiting."""

from __future__ import annotations

from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, Final


class CallGroup:
    """The calls of the portal that some threads wait for: who waits for those threads can cancel them."""

    def __init__(self) -> None:
        self._waiting = set[Future[Any]]()
        self._cancelled = False

    def enter(self) -> None:
        """This thread's calls belong to the group from now on."""
        CALL_GROUP.set(self)

    def add(self, call: Future[Any]) -> None:
        """A call begins."""
        self._waiting.add(call)
        call.add_done_callback(self._waiting.discard)
        if self._cancelled:
            call.cancel()

    def cancel(self) -> None:
        """Cancel the calls that are under way, and those that are still to come."""
        self._cancelled = True
        for call in list(self._waiting):
            call.cancel()


CALL_GROUP: Final[ContextVar[CallGroup | None]] = ContextVar("CALL_GROUP", default=None)
"""The group of the calls of this thread."""
