"""The queue of a stream's items: bounds, order, ends."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.errors import ProtocolViolation
from hivemind_p2p.rpc.item_queue import ItemQueue


@given(
    sizes=st.lists(st.integers(0, 12), max_size=30),
    max_items=st.integers(1, 4),
    max_bytes=st.integers(1, 20),
    order=st.randoms(use_true_random=False),
)
def test_items_keep_their_order_and_the_bounds_hold(sizes, max_items, max_bytes, order):
    async def main():
        queue, taken, held = ItemQueue(max_items, max_bytes), [], []

        async def put_all():
            for number, size in enumerate(sizes):
                await queue.put(bytearray([number]) * size)
                held.append(number + 1 - len(taken))
                in_queue = sizes[len(taken) : number + 1]
                assert len(in_queue) <= max_items
                assert len(in_queue) == 1 or sum(in_queue) <= max_bytes
                if order.random() < 0.5:
                    await trio.lowlevel.checkpoint()
            queue.end()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_all)
            while (item := await queue.get()) is not None:
                taken.append(item)
                if order.random() < 0.5:
                    await trio.lowlevel.checkpoint()
        assert taken == [bytearray([number]) * size for number, size in enumerate(sizes)]

    trio.run(main)


async def test_a_failure_comes_behind_the_items(autojump_clock):
    queue = ItemQueue(4, 100)
    await queue.put(bytearray(b"x"))
    queue.end(ProtocolViolation("garbage"))
    assert await queue.get() == b"x"
    for _ in range(2):
        with pytest.raises(ProtocolViolation):
            await queue.get()
