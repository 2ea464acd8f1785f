"""What runs while it is entered: once, to a clean end, and the caller's exceptions come out as they are."""

from __future__ import annotations

import pytest
import trio

from hivemind_p2p.background import Background
from hivemind_p2p.errors import NodeClosed


class Service(Background):
    def __init__(self, *, broken: bool = False) -> None:
        self.events: list[str] = []
        self._broken = broken

    async def _begin(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._run)
        await trio.testing.wait_all_tasks_blocked()
        if self._broken:
            raise ZeroDivisionError

    async def _run(self) -> None:
        self.events.append("runs")
        try:
            await trio.sleep_forever()
        finally:
            self.events.append("was cancelled")

    async def _end(self) -> None:
        await trio.lowlevel.checkpoint()
        self.events.append("ends")


WHOLE_LIFE = ["runs", "ends", "was cancelled"]


async def test_it_runs_inside_the_block_and_once():
    service = Service()
    async with service:
        assert service.events == ["runs"]
    assert service.events == WHOLE_LIFE
    with pytest.raises(NodeClosed, match="this Service was started before"):
        async with service:
            pass


async def test_an_exception_of_the_body_comes_out_as_it_is():
    service = Service()
    with pytest.raises(LookupError):
        async with service:
            raise LookupError
    assert service.events == WHOLE_LIFE


async def test_what_fails_to_start_is_ended():
    service = Service(broken=True)
    with pytest.raises(ZeroDivisionError):
        async with service:
            raise AssertionError
    assert service.events == WHOLE_LIFE


async def test_it_ends_when_it_is_cancelled_from_outside():
    service = Service()
    with trio.CancelScope() as scope:
        async with service:
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert sorted(service.events) == sorted(WHOLE_LIFE)


async def test_a_task_that_fails_ends_the_body():
    service = Service()

    async def body() -> None:
        async with service:
            assert service._nursery is not None
            service._nursery.start_soon(fail)
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as failure:
        await body()
    assert failure.group_contains(ZeroDivisionError)
    assert sorted(service.events) == sorted(WHOLE_LIFE)


async def fail() -> None:
    raise ZeroDivisionError
