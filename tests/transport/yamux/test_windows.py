"""Receive windows: when they open, how they grow, and that they stay within what they share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.transport.yamux.frames import INITIAL_WINDOW
from hivemind_p2p.transport.yamux.windows import ReceiveWindow, WindowBudget
from tests.transport.yamux.sessions import MIB


def fill(window: ReceiveWindow, now: float) -> int:
    """The peer uses all of the window and everything is read; by how much it opens."""
    size, window.left = window.left, 0
    assert window.hold(size)
    return window.consumed(size, now)


def test_a_window_in_heavy_use_doubles_up_to_its_limit():
    budget = WindowBudget(max_window=16 * MIB, budget=64 * MIB)
    budget.rtt = 0.05
    window, now = ReceiveWindow(budget, 0.0), 0.0
    sizes = []
    for _ in range(8):
        now += 0.05
        fill(window, now)
        sizes.append(window.size // INITIAL_WINDOW)
    assert sizes == [2, 4, 8, 16, 32, 64, 64, 64]
    assert window.left == 16 * MIB


def test_a_window_that_is_used_slowly_stays_as_it_is():
    budget = WindowBudget(max_window=16 * MIB, budget=64 * MIB)
    budget.rtt = 0.05
    window = ReceiveWindow(budget, 0.0)
    assert fill(window, now=0.21) == INITIAL_WINDOW
    assert window.size == INITIAL_WINDOW
    assert fill(window, now=0.30) == 2 * INITIAL_WINDOW


def test_the_next_stream_begins_with_what_the_last_one_grew_to():
    budget = WindowBudget(max_window=16 * MIB, budget=64 * MIB)
    window = ReceiveWindow(budget, 0.0)
    for _ in range(6):
        fill(window, 0.0)
    assert ReceiveWindow(budget, 0.0).size == MIB, "not all of it: there may be many"


def test_windows_grow_within_the_budget_and_give_it_back():
    budget = WindowBudget(max_window=16 * MIB, budget=MIB)
    windows = [ReceiveWindow(budget, 0.0) for _ in range(3)]
    fill(windows[0], 0.0)
    assert budget.granted == MIB
    fill(windows[1], 0.0)
    assert windows[1].size == INITIAL_WINDOW
    assert ReceiveWindow(budget, 0.0).size == INITIAL_WINDOW, "that much is the peer's by right"
    windows[0].release()
    fill(windows[1], 0.0)
    assert windows[1].size == 2 * INITIAL_WINDOW


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 300_000), st.floats(0, 1)), max_size=60))
def test_the_books_are_kept(steps):
    """Whatever happens: sent + held + to be given back + open window = window."""
    budget = WindowBudget(max_window=MIB, budget=2 * MIB)
    windows = [ReceiveWindow(budget, 0.0) for _ in range(4)]
    now = 0.0
    for number, size, pause in steps:
        window, now = windows[number], now + pause
        if (arrived := min(size, window.left)) > 0:
            window.left -= arrived
            assert window.hold(arrived)
        if (read := min(size, window.held)) > 0:
            window.consumed(read, now)
        assert window.left + window.held + window._credit == window.size <= MIB
        assert budget.held == sum(each.held for each in windows)
        assert budget.granted == sum(each.size for each in windows) <= 2 * MIB
    for window in windows:
        window.drop()
        window.release()
    assert budget.held == budget.granted == 0
