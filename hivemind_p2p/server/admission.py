"""Which requests a server takes: none while it stops, and no more bytes than it has room for."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import trio

from hivemind_p2p.errors import MessageTooLarge, NodeClosed, Overloaded

_SOON: Final = 0.5
"""Seconds after which a refused caller may try again: how long requests at hand take is not known here."""


class Admission:
    """Counts requests at hand, and their bytes.

    Args:
        max_request_bytes: of one request.
        max_pending_bytes: of all.

    Attributes:
        requests, pending_bytes: at hand now.
    """

    def __init__(self, *, max_request_bytes: int, max_pending_bytes: int) -> None:
        self.max_request_bytes = max_request_bytes
        self._max_pending_bytes = max_pending_bytes
        self._closed = False
        self._changed = trio.Event()
        self.requests = 0
        self.pending_bytes = 0

    def enter(self) -> Admitted:
        """A request, which is at hand inside ``with``.

        Raises:
            NodeClosed: :meth:`close` was called.
        """
        if self._closed:
            raise NodeClosed("this server is stopping; ask another one for the expert")
        return Admitted(self)

    def leave(self, admitted: Admitted) -> None:
        """It is at hand no longer."""
        self.requests -= 1
        self.pending_bytes -= admitted.nbytes
        if not self.requests:
            self._changed.set()
            self._changed = trio.Event()

    def take(self, nbytes: int, already: int) -> None:
        """Make room for more bytes of a request.

        Raises:
            MessageTooLarge: the request has too many.
            Overloaded: all requests together have.
        """
        if already + nbytes > self.max_request_bytes:
            raise MessageTooLarge(
                f"a request of more than {self.max_request_bytes} bytes is not taken; send less at once"
            )
        if self.pending_bytes + nbytes > self._max_pending_bytes:
            raise Overloaded(
                f"the requests at hand have {self.pending_bytes} bytes, and no more than {self._max_pending_bytes} are "
                "taken; try again later, or another replica",
                retry_after=_SOON,
            )
        self.pending_bytes += nbytes

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<Admission: {self.requests} requests of {self.pending_bytes} bytes at hand{state}>"

    def close(self) -> None:
        """Take no more requests."""
        self._closed = True

    async def empty(self) -> None:
        """Wait until no request is at hand."""
        while self.requests:
            await self._changed.wait()


class Admitted:
    """One request at hand.

    Attributes:
        nbytes: that it has so far.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.nbytes = 0

    def __enter__(self) -> Self:
        self._admission.requests += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.leave(self)

    def take(self, nbytes: int) -> None:
        """Make room for more of its bytes; see :meth:`Admission.take`."""
        self._admission.take(nbytes, self.nbytes)
        self.nbytes += nbytes
