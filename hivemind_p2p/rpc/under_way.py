"""The calls of one node that are under way, of both directions: each is bounded, watched, and ends with the node."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self

import trio

from hivemind_p2p.errors import DeadlineExceeded, HivemindError, NodeClosed, StreamError
from hivemind_p2p.rpc.failures import text_of
from hivemind_p2p.rpc.trace import CallEnded, CallStarted, Trace

logger = logging.getLogger(__name__)


class CallsUnderWay:
    """What is under way.

    Args:
        timeout: seconds that a call may take which has no bound of its own.
        trace: told of the beginning and the end of every call.
    """

    def __init__(self, timeout: float, trace: Trace | None) -> None:
        self.timeout, self.trace = timeout, trace
        self.running = False
        """Whether calls may begin."""
        self._scopes: set[trio.CancelScope] = set()
        self._all_ended = trio.Event()

    def add(self, scope: trio.CancelScope) -> None:
        """Cancel this when the node ends, which waits until it is removed."""
        if not self.running:
            raise NodeClosed("this RPC is not running: use it inside `async with RPC(...) as rpc`")
        self._scopes.add(scope)

    def remove(self, scope: trio.CancelScope) -> None:
        """It is not under way any more."""
        self._scopes.remove(scope)
        if not self._scopes and not self.running:
            self._all_ended.set()

    async def end(self) -> None:
        """Cancel all, and wait for them."""
        self.running = False
        for scope in self._scopes:
            scope.cancel()
        if self._scopes:
            await self._all_ended.wait()

    def __len__(self) -> int:
        return len(self._scopes)


class Call:
    """A call under way, inside ``with``.

    Raises:
        NodeClosed: the RPC does not run, or stopped meanwhile.
        DeadlineExceeded: it took longer than ``timeout`` seconds; by default those of the settings.
        StreamError: the peer gave up.
    """

    def __init__(self, under_way: CallsUnderWay, started: CallStarted, timeout: float | None) -> None:
        self._under_way, self._started = under_way, started
        self._seconds = under_way.timeout if timeout is None else timeout
        self.given_up = False
        self._scope = trio.CancelScope()
        self._began = 0.0
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._under_way.add(self._scope)
        if not self._began:
            self.begins()
        self._scope.deadline = self._began + self._seconds
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            swallowed = self._scope.__exit__(kind, error, trace)
            if self._scope.cancelled_caught:
                raise self._why_cancelled()
            if error is not None:
                self._error = error
            return bool(swallowed)
        except BaseException as raised:
            self._error = raised
            raise
        finally:
            self._under_way.remove(self._scope)
            self.ends()

    def begins(self) -> None:
        """It begins, and may end without waiting for anything: then it needs no ``with``."""
        self._began = trio.current_time()
        if self._under_way.trace is not None:
            self._under_way.trace(self._started)

    def ends(self) -> None:
        """It has ended."""
        if self._under_way.trace is None:
            return
        error = self._error
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        self._under_way.trace(CallEnded(self._started, trio.current_time() - self._began, error))

    def catch(self, error: Exception) -> str:
        """Record a handler's exception, at the boundary of one request; what its caller is told."""
        self._error = error
        method, peer_id = self._started.method, self._started.peer_id
        if isinstance(error, HivemindError):
            logger.debug("%s failed for %s: %s", method, peer_id, error)
        else:
            logger.error("the handler of %s failed for %s", method, peer_id, exc_info=error)
        return text_of(error)

    def give_up(self) -> None:
        """The caller waits no more; it may not have begun."""
        self.given_up = True
        self._scope.cancel()

    def _why_cancelled(self) -> HivemindError:
        method, peer_id = self._started.method, self._started.peer_id
        if not self._under_way.running:
            return NodeClosed(f"the node was shut down during a call of {method}")
        if self.given_up:
            return StreamError(f"{peer_id} gave up, or sent more than one request")
        return DeadlineExceeded(
            f"{peer_id} did not finish {method} within {self._seconds:g} s, and was told that nobody waits"
            " any more; give the call more time, or ask another peer"
        )
