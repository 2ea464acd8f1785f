from __future__ import annotations

import trio

from hivemind_p2p.dht.alarms import Alarms


async def test_they_ring_in_time_unless_they_are_called_off(autojump_clock):
    alarms, rung = Alarms(), list[tuple[str, float]]()

    def ring(name: str):
        return lambda: rung.append((name, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarms.run)
        early = alarms.after(3, ring("set before it runs"))
        await trio.sleep(1)
        alarms.after(5, ring("late"))
        off = alarms.after(1, ring("called off"))
        alarms.after(0.5, ring("sooner than those before"))
        alarms.after(0.5, lambda: alarms.after(1, ring("set by another")))
        off.call_off()
        assert repr(alarms) == "<Alarms, 4 set>"
        await trio.sleep(10)
        early.call_off()
        early.ring()
        nursery.cancel_scope.cancel()
    assert rung == [
        ("sooner than those before", 1.5),
        ("set by another", 2.5),
        ("set before it runs", 3.0),
        ("late", 6.0),
    ]


async def test_those_that_are_called_off_wake_nobody(autojump_clock):
    """What is usual: an answer comes long before patience is lost."""
    alarms = Alarms()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarms.run)
        for _ in range(100):
            alarms.after(1, lambda: None).call_off()
        assert repr(alarms) == "<Alarms, 0 set>"
        alarms.after(0.1, nursery.cancel_scope.cancel)
        assert len(alarms._heap) <= 101
        await trio.sleep(0.5)
    assert len(alarms._heap) <= 1
