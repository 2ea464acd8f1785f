from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import traceback
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait
from contextlib import asynccontextmanager

import pytest
import trio

from hivemind_p2p.errors import NodeClosed, WouldDeadlock
from hivemind_p2p.sync import Portal, portal


@pytest.fixture
def own_portal():
    """A portal that is not the process's, to be closed by the test or after it."""
    own = Portal()
    yield own
    assert own.close(10)


async def double(number):
    await trio.lowlevel.checkpoint()
    return 2 * number


async def fail_deep_inside():
    await trio.lowlevel.checkpoint()
    raise LookupError("not here")


class Endless:
    """An asynchronous function that only ends by being cancelled, and tells."""

    def __init__(self):
        self.began, self.ended = threading.Event(), threading.Event()

    async def __call__(self):
        self.began.set()
        try:
            await trio.sleep_forever()
        finally:
            self.ended.set()


def test_one_portal_for_the_whole_process():
    assert portal() is portal()
    with ThreadPoolExecutor(8) as pool:
        assert {pool.submit(portal).result() for _ in range(8)} == {portal()}


def test_results_come_back_to_many_threads_at_once():
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: portal().call(double, n), range(100))) == [2 * n for n in range(100)]


def test_an_error_comes_back_with_both_halves_of_its_traceback():
    def the_caller():
        portal().call(fail_deep_inside)

    with pytest.raises(LookupError, match="not here") as caught:
        the_caller()
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names.index("the_caller") < names.index("fail_deep_inside")


def test_within_a_running_loop():
    async def in_asyncio():
        future = portal().submit(double, 4)
        return portal().call(double, 3), await asyncio.wrap_future(future)

    async def in_trio():
        return portal().call(double, 5)

    assert asyncio.run(in_asyncio()) == (6, 8)
    assert trio.run(in_trio) == 10


def test_within_backward():
    torch = pytest.importorskip("torch")

    class Remote(torch.autograd.Function):
        @staticmethod
        def forward(ctx, inputs):
            return inputs.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * portal().call(double, 2)

    inputs = torch.ones(3, requires_grad=True)
    Remote.apply(inputs).sum().backward()
    assert inputs.grad.tolist() == [4, 4, 4]


def test_the_portals_own_thread_gets_an_error_instead_of_a_deadlock():
    async def call_within():
        with pytest.raises(WouldDeadlock, match="await the asynchronous function"):
            portal().call(double, 1)
        with pytest.raises(WouldDeadlock):
            portal().submit(double, 1).result()
        return "still here"

    assert portal().call(call_within) == "still here"


def test_ctrl_c_ends_the_wait_and_cancels_the_call():
    endless = Endless()

    async def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        await endless()

    with pytest.raises(KeyboardInterrupt):
        portal().call(interrupted)
    assert endless.ended.wait(10)
    assert portal().call(double, 1) == 2


def test_ctrl_c_while_entering_leaves_what_was_entered_so_far():
    endless = Endless()

    @asynccontextmanager
    async def slow():
        os.kill(os.getpid(), signal.SIGINT)
        await endless()
        yield

    with pytest.raises(KeyboardInterrupt):
        portal().enter(slow())
    assert endless.ended.wait(10)


def test_who_waits_for_many_futures_sees_those_that_were_cancelled():
    futures = [portal().submit(trio.sleep_forever) for _ in range(2)]
    for future in futures:
        assert future.cancel()
        assert future.cancel()
    assert wait(futures, timeout=10).not_done == set()
    assert set(as_completed(futures, timeout=10)) == set(futures)


def test_a_future_can_be_cancelled():
    endless = Endless()
    future = portal().submit(endless)
    assert endless.began.wait(10)
    assert future.cancel()
    assert endless.ended.wait(10)
    with pytest.raises(CancelledError):
        future.result()
    done = portal().submit(double, 1)
    done.result()
    assert not done.cancel()


class Room:
    """An asynchronous context manager that notes what happens to it."""

    def __init__(self, on_enter=None, on_leave=None):
        self.on_enter, self.on_leave, self.events = on_enter, on_leave, []
        self.collapse = trio.Event()

    @asynccontextmanager
    async def open(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.wait_for_collapse)
            if self.on_enter:
                raise self.on_enter
            self.events.append("entered")
            try:
                yield self
            finally:
                self.events.append("left")
            if self.on_leave:
                raise self.on_leave
            nursery.cancel_scope.cancel()

    async def wait_for_collapse(self):
        await self.collapse.wait()
        raise ZeroDivisionError("the roof fell in")


def test_enter_and_close():
    value, close = portal().enter(Room().open())
    assert value.events == ["entered"]
    close()
    assert value.events == ["entered", "left"]
    close()
    assert value.events == ["entered", "left"]


def test_closing_what_is_still_being_entered_cancels_that():
    endless = Endless()

    @asynccontextmanager
    async def slow():
        await endless()
        yield

    held = portal().hold(slow())
    assert endless.began.wait(10)
    held.close()
    assert endless.ended.wait(10)
    with pytest.raises(NodeClosed, match="while it was starting"):
        held.value()
    held.close()


def test_what_entering_raises_and_what_leaving_raises():
    with pytest.RaisesGroup(pytest.RaisesExc(LookupError, match="locked")):
        portal().enter(Room(on_enter=LookupError("locked")).open())
    _, close = portal().enter(Room(on_leave=LookupError("stuck")).open())
    with pytest.RaisesGroup(pytest.RaisesExc(LookupError, match="stuck")):
        close()


def test_what_collapses_while_it_is_held_is_logged_and_closed(caplog):
    room = Room()
    held = portal().hold(room.open())
    held.value()
    assert not held.closed
    portal().soon(room.collapse.set)
    assert held.wait_closed(10)
    assert held.closed
    assert room.events == ["entered", "left"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "the roof fell in" in caplog.text
    with pytest.RaisesGroup(ZeroDivisionError):
        held.close()


def test_leaving_that_takes_too_long_is_cancelled(caplog):
    endless = Endless()

    @asynccontextmanager
    async def slow_to_leave():
        yield
        await endless()

    held = portal().hold(slow_to_leave())
    held.value()
    held.close(timeout=0.01)
    assert endless.ended.wait(10)
    assert "not enough to end cleanly" in caplog.text


def test_a_closed_portal(own_portal):
    room, endless = Room(), Endless()
    own_portal.enter(room.open())
    held = own_portal.hold(Room().open())
    waiting = own_portal.submit(endless)
    assert endless.began.wait(10)
    assert repr(own_portal) == "<Portal, 3 calls in flight>"
    assert own_portal.close(10)
    assert room.events == ["entered", "left"]
    assert endless.ended.is_set()
    with pytest.raises(NodeClosed, match="nothing that lived in it"):
        waiting.result()
    with pytest.raises(NodeClosed, match="has ended"):
        own_portal.call(double, 1)
    with pytest.raises(NodeClosed):
        own_portal.submit(double, 1)
    assert held.closed
    assert repr(own_portal) == "<Portal, closed: the background Trio thread has ended>"
    assert own_portal.close()


def test_calls_that_come_while_it_is_closing_are_refused(own_portal):
    refused = []

    async def refuse_to_go():
        try:
            await trio.sleep_forever()
        finally:
            refused.append(own_portal.soon(print))
            with pytest.raises(NodeClosed):
                own_portal.submit(double, 1)

    own_portal.submit(refuse_to_go)
    own_portal.call(double, 1)
    assert own_portal.close(10)
    assert refused == [False]


def test_a_crash_of_the_run_itself_settles_every_call(own_portal, caplog):
    def not_allowed_to_raise():
        raise ZeroDivisionError("a bug")

    waiting = own_portal.submit(trio.sleep_forever)
    own_portal.soon(not_allowed_to_raise)
    with pytest.raises(NodeClosed):
        waiting.result(10)
    assert own_portal.close(10)
    with pytest.raises(NodeClosed, match="ended by an error"):
        own_portal.call(double, 1)
    assert "a bug" in caplog.text
