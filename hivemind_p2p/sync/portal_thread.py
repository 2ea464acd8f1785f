"""The portal: one background Trio thread per process, for threads that know no Trio.

A caller hands over an asynchronous function and waits for a :class:`concurrent.futures.Future`. Everything runs in one
nursery of the thread's one Trio run. Work is handed over by ``run_sync_soon`` alone, which may be called from anywhere:
from threads of torch's autograd engine, from within another event loop, from ``__del__``.

The thread starts with the first use and ends with the interpreter: what is held is left, the newest first, and what
still runs is cancelled, which lets every ``async with`` clean up. A forked child has no such thread; what the parent
had entered is not there, and the child's first use starts a thread of its own.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final, Generic, TypeVar, TypeVarTuple

import trio

from hivemind_p2p.errors import NodeClosed, WouldDeadlock
from hivemind_p2p.sync.call_group import CALL_GROUP

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")
EXIT_TIMEOUT: Final = 15.0
"""Seconds that clean-up may take when the interpreter exits."""

logger = logging.getLogger(__name__)


class PortalFuture(Future[_T]):
    """A :class:`~concurrent.futures.Future` whose ``cancel`` also cancels the call, even after it began."""

    def __init__(self, portal: Portal) -> None:
        super().__init__()
        self._portal = portal
        self.scope = trio.CancelScope()

    def cancel(self) -> bool:
        """Cancel the call, unless it is done. Its clean-up goes on in the portal."""
        cancelled = super().cancel()
        if cancelled:
            with self._condition:
                if self._state == "CANCELLED":  # `wait` and `as_completed` do not see it yet
                    self.set_running_or_notify_cancel()
            self._portal.soon(self.scope.cancel)
        return cancelled

    def result(self, timeout: float | None = None) -> _T:
        """The result, or the error; see :class:`~concurrent.futures.Future`.

        Raises:
            WouldDeadlock, NodeClosed: it is not done, and as :meth:`Portal.check_may_wait` says.
        """
        if not self.done():
            self._portal.check_may_wait()
        return super().result(timeout)

    def settle(self, result: _T | None = None, error: BaseException | None = None) -> None:
        """Set the result or the error, unless somebody has cancelled."""
        try:
            if error is not None:
                self.set_exception(error)
            else:
                self.set_result(result)  # type: ignore[arg-type]
        except InvalidStateError:
            pass


class Portal:
    """A Trio run in a thread of its own. Use :func:`portal`, which makes the process's one."""

    def __init__(self) -> None:
        started = Future[None]()
        self._gone = False
        self._closed: str | None = None
        self._unsettled = set[PortalFuture[Any]]()
        self._held: dict[Held[Any], None] = {}
        self._thread = threading.Thread(target=self._run, args=(started,), name="hivemind_p2p portal", daemon=True)
        self._thread.start()
        started.result()

    def call(self, async_fn: Callable[[*_Args], Awaitable[_T]], *args: *_Args) -> _T:
        """Run ``async_fn(*args)`` in the portal and wait for it.

        KeyboardInterrupt, or whatever else ends the wait, cancels the call.

        Raises:
            WouldDeadlock: this is the portal's own thread; call the asynchronous function instead.
            NodeClosed: the portal is closed, or was closed before the call was done.
        """
        self.check_may_wait()
        future = PortalFuture[_T](self)
        if (group := CALL_GROUP.get()) is not None:
            group.add(future)
        try:
            self._begin(future, async_fn, args)
            return future.result()
        finally:
            future.cancel()
            del future  # it holds the error, whose traceback holds this frame

    def submit(self, async_fn: Callable[[*_Args], Awaitable[_T]], *args: *_Args) -> PortalFuture[_T]:
        """Run ``async_fn(*args)`` in the portal; wait for the future, or cancel it, when you like.

        Raises:
            NodeClosed: the portal is closed.
        """
        future = PortalFuture[_T](self)
        self._begin(future, async_fn, args)
        return future

    def hold(self, manager: AbstractAsyncContextManager[_T]) -> Held[_T]:
        """Begin to enter ``manager`` in the portal, to keep it until told otherwise; does not wait."""
        held = Held[_T](self)
        self._held[held] = None
        held.when_closed(partial(self._held.pop, held, None))
        try:
            self._begin(held.left, held.keep, (manager,))
        except BaseException:
            held.left.cancel()
            raise
        return held

    def enter(self, manager: AbstractAsyncContextManager[_T]) -> tuple[_T, Callable[[], None]]:
        """Enter ``manager`` in the portal and keep it.

        Returns:
            What it gave, and a function that leaves it and waits until it is left; it raises what leaving raised.

        Raises:
            WouldDeadlock, NodeClosed: as for :meth:`call`; and whatever entering raises.
        """
        held = self.hold(manager)
        return held.value(), held.close

    def soon(self, sync_fn: Callable[[*_Args], object], *args: *_Args) -> bool:
        """Have the portal's thread call ``sync_fn(*args)``, which must not raise; False if it is closed."""
        if self._closed is not None:
            return False
        try:
            self._token.run_sync_soon(sync_fn, *args)
        except trio.RunFinishedError:
            return False
        return True

    def check_may_wait(self) -> None:
        """Pass where waiting for the portal will end.

        Raises:
            WouldDeadlock: this is the portal's own thread.
            NodeClosed: the portal's thread is gone.
        """
        if self._gone:
            raise NodeClosed(self._why_closed())
        if threading.get_ident() == self._thread.ident:
            raise WouldDeadlock(
                "a synchronous call was made in the thread that would have to answer it: inside asynchronous code of "
                "this package (DHT.run_coroutine, for one), await the asynchronous function of the same name instead"
            )

    def close(self, timeout: float | None = None) -> bool:
        """Leave what is held, the newest first, cancel all that still runs, and end the thread.

        Args:
            timeout: seconds for all of it; None waits as long as it takes.

        Returns:
            Whether it ended in time.
        """
        if not self._gone:
            self.check_may_wait()
            deadline = None if timeout is None else time.monotonic() + timeout
            for held in reversed(list(self._held)):
                held.close_soon()
                held.wait_closed(_left_until(deadline))
            self.soon(self._cancel_all)
            self._thread.join(_left_until(deadline))
        return self._gone

    def forget(self, why: str) -> None:
        """Say that the thread is gone; every use raises :class:`~hivemind_p2p.errors.NodeClosed` with this reason."""
        self._closed, self._gone = why, True

    @property
    def closed(self) -> bool:
        """Whether it takes no more calls."""
        return self._closed is not None

    @property
    def gone(self) -> bool:
        """Whether its thread has ended, or stayed with the process that this one was forked from."""
        return self._gone

    def __repr__(self) -> str:
        return f"<Portal, {f'closed: {self._closed}' if self.closed else f'{len(self._unsettled)} calls in flight'}>"

    def _run(self, started: Future[None]) -> None:
        """The thread's whole life."""
        why = "the background Trio thread has ended"
        try:
            trio.run(self._serve, started)
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            else:
                why = f"the background Trio thread was ended by an error: {error!r}"
                logger.exception("the background Trio thread was ended by an error")
        self.forget(why)
        for future in list(self._unsettled):
            future.settle(error=NodeClosed(self._why_closed()))

    async def _serve(self, started: Future[None]) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._token = trio.lowlevel.current_trio_token()
            started.set_result(None)
            await trio.sleep_forever()

    def _cancel_all(self) -> None:
        self._closed = "the background Trio thread is ending"
        self._nursery.cancel_scope.cancel()

    def _why_closed(self) -> str:
        return f"{self._closed or 'the background Trio thread is ending'}; nothing that lived in it can be used"

    def _begin(self, future: PortalFuture[_T], async_fn: Callable[..., Awaitable[_T]], args: tuple[Any, ...]) -> None:
        """KeyboardInterrupt may come in here, with the call begun or not: the caller must cancel the future then."""
        if not self.soon(self._start, future, async_fn, args):
            raise NodeClosed(self._why_closed())

    def _start(self, future: PortalFuture[_T], async_fn: Callable[..., Awaitable[_T]], args: tuple[Any, ...]) -> None:
        if self._closed is not None:
            future.settle(error=NodeClosed(self._why_closed()))
        elif not future.cancelled():
            self._unsettled.add(future)
            self._nursery.start_soon(self._call, future, async_fn, args)

    async def _call(
        self, future: PortalFuture[_T], async_fn: Callable[..., Awaitable[_T]], args: tuple[Any, ...]
    ) -> None:
        try:
            with future.scope:
                future.settle(await async_fn(*args))
        except trio.Cancelled:
            future.settle(error=NodeClosed(self._why_closed()))
            raise
        except BaseException as error:  # the caller's, whatever it is
            future.settle(error=error)
        finally:
            self._unsettled.discard(future)
            del future  # it may hold the error, whose traceback holds this frame


class Held(Generic[_T]):
    """An asynchronous context manager that is entered in the portal and stays so until :meth:`close`.

    :meth:`Portal.hold` makes it.
    """

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._enough = trio.Event()
        self._entered = PortalFuture[_T](portal)
        self.left = PortalFuture[None](portal)
        self.left.add_done_callback(self._entered_never)

    def value(self, timeout: float | None = None) -> _T:
        """What entering gave; waits until it is entered.

        KeyboardInterrupt cancels the entering; a timeout does not.

        Raises:
            TimeoutError: it takes longer than ``timeout`` seconds.
        """
        try:
            return self._entered.result(timeout)
        except KeyboardInterrupt:
            self.left.cancel()
            raise

    def close_soon(self) -> None:
        """Leave it, without waiting; what is still being entered is cancelled."""
        self._portal.soon(self._leave)

    def close(self, timeout: float | None = None) -> None:
        """Leave it and wait until it is left. Leaving that takes longer than ``timeout`` seconds is cancelled.

        Raises:
            BaseException: what leaving raised, or what ended it before.
        """
        if self._portal.gone and not self.left.done():
            return  # it stayed with the parent process
        self.close_soon()
        try:
            self.left.result(timeout)
        except CancelledError:
            pass  # it had not been entered yet
        except TimeoutError:
            if self.left.done():
                raise
            logger.warning("%s seconds were not enough to end cleanly; cancelling what is left", timeout)
            self.left.cancel()

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait until it is left, by :meth:`close` or by an error; whether it was within ``timeout`` seconds."""
        self._portal.check_may_wait()
        left = threading.Event()
        self.when_closed(left.set)
        return left.wait(timeout)

    def when_closed(self, sync_fn: Callable[[], object]) -> None:
        """Call ``sync_fn()`` once it is left; from the portal's thread, or at once if it is left already."""
        self.left.add_done_callback(lambda _: sync_fn())

    @property
    def closed(self) -> bool:
        """Whether it is left, or was never entered."""
        return self.left.done() or self._portal.gone

    async def keep(self, manager: AbstractAsyncContextManager[_T]) -> None:
        """Enter it, stay, and leave it; the portal's part."""
        try:
            async with manager as value:
                self._entered.settle(value)
                await self._enough.wait()
        except Exception:
            if self._entered.done() and not self._enough.is_set():
                logger.exception("%r was ended by an error", manager)
            raise

    def _leave(self) -> None:
        self._enough.set()
        if not self._entered.done():
            self.left.cancel()

    def _entered_never(self, left: Future[None]) -> None:
        if not self._entered.done():
            error = NodeClosed("cancelled while it was starting") if left.cancelled() else left.exception()
            self._entered.settle(error=error)


def _left_until(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


_portal: Portal | None = None
_lock = threading.Lock()


def portal() -> Portal:
    """The process's one portal, started by its first use."""
    global _portal
    current = _portal
    if current is not None and not current.closed:
        return current
    with _lock:
        if _portal is None or _portal.closed:
            _portal = Portal()
        return _portal


def _close_at_exit() -> None:
    if _portal is not None and not _portal.closed and not _portal.close(EXIT_TIMEOUT):
        logger.warning("what ran in the background did not end within %s s; leaving it behind", EXIT_TIMEOUT)


def _forget_after_fork() -> None:
    """In a forked child: the thread stayed with the parent, and the lock may be held by a thread that did, too."""
    global _portal, _lock
    _lock = threading.Lock()
    if _portal is not None:
        _portal.forget("this process was forked, and the background Trio thread stayed with the parent")
        _portal = None


atexit.register(_close_at_exit)
os.register_at_fork(after_in_child=_forget_after_fork)
