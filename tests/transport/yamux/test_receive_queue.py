"""The queue of received bytes: in order, and without costing much more than it holds."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.transport.yamux.receive_queue import ReceiveQueue

sizes = st.one_of(st.integers(0, 20), st.integers(4000, 5000))


@given(
    st.lists(st.tuples(sizes, sizes), max_size=30), st.lists(st.one_of(st.none(), st.integers(1, 9000)), max_size=50)
)
def test_bytes_come_out_as_they_went_in(pieces, reads):
    queue, position, sent = ReceiveQueue(), 0, b""
    for size, beside in pieces:
        message = bytes((position + offset) % 251 for offset in range(size)) + bytes(beside)
        queue.append(memoryview(message)[:size])
        sent, position = sent + message[:size], position + size
    assert queue.size == len(sent)
    got = b""
    for number, most in enumerate(reads):
        if number % 2:
            got += queue.take(most)
        else:
            target = bytearray(most or 1)
            got += target[: queue.take_into(memoryview(target))]
    while queue.size:
        got += queue.take()
    assert got == sent
    assert queue.take() == b""


def test_large_pieces_are_not_copied():
    queue, message = ReceiveQueue(), bytes(60_000)
    queue.append(memoryview(message)[12:])
    queue.append(memoryview(message)[12:])
    assert repr(queue) == "<ReceiveQueue of 119976 bytes in 2 pieces>"
    target = bytearray(100_000)
    assert queue.take_into(memoryview(target)) == 100_000
    assert queue.size == 19_976
    queue.clear()
    assert queue.take() == b""


def test_single_bytes_out_of_large_messages_cost_little():
    queue = ReceiveQueue()
    tracemalloc.start()
    try:
        for _ in range(20_000):
            queue.append(memoryview(bytes(1000))[500:501])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert queue.size == 20_000
    assert held < 3 * 20_000
