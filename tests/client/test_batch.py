"""Timelines of the calls of one batch, under a clock that jumps; and the counting that ends them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import trio
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.client.batch import Call, Patience, call_experts
from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.quorum import Quorum
from hivemind_p2p.errors import RemoteError
from hivemind_p2p.wire.peer_id import PeerID

PEER = PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes(32))
FOREVER = float("inf")


@pytest.fixture
def run():
    """``await run(calls, patience)``: calls are ``(rows, seconds, fails)``; outcomes, and how long it took."""
    cancelled: list[str] = []

    async def run(calls, patience: Patience, samples: int = 4):
        x = torch.arange(float(samples))[:, None]
        infos = [ExpertInfo(f"ffn.{number}", PEER) for number in range(len(calls))]
        fates = {info.uid: tuple(call[1:]) for info, call in zip(infos, calls, strict=True)}

        async def ask(expert, tensors, timeout, attempts):
            assert timeout == (FOREVER if patience.timeout else None), "what the patience ends is late, not failed"
            seconds, fails = fates[expert.uid]
            try:
                await trio.sleep(seconds)
            except trio.Cancelled:
                cancelled.append(expert.uid)
                raise
            if fails:
                raise RemoteError("no")
            return expert, [tensors[0] * 2]

        made = [Call(info, torch.tensor(call[0]), [x]) for info, call in zip(infos, calls, strict=True)]
        began = trio.current_time()
        outcomes = await call_experts(ask, made, patience, torch.zeros(samples, dtype=torch.int64))
        took = pytest.approx(trio.current_time() - began)
        return SimpleNamespace(
            outcomes=[outcome.report.outcome for outcome in outcomes],
            answers=[outcome.tensors and outcome.tensors[0].flatten().tolist() for outcome in outcomes],
            took=took,
            cancelled=cancelled,
        )

    return run


async def test_all_are_waited_for_at_the_same_time_and_get_their_rows(autojump_clock, run) -> None:
    done = await run([([0, 1], 3, False), ([3, 2], 5, False), ([0, 1, 2, 3], 4, False)], Patience(1))
    assert done.answers == [[0, 2], [6, 4], [0, 2, 4, 6]]
    assert done.took == 5


async def test_a_failure_does_not_end_the_others(autojump_clock, run) -> None:
    done = await run([([0, 1, 2, 3], 1, True), ([0, 1, 2, 3], 2, False)], Patience(1))
    assert done.outcomes == ["failed", "answered"]


async def test_stragglers_have_so_long_once_every_sample_has_k_min(autojump_clock, run) -> None:
    calls = [([0, 1], 1, False), ([2, 3], 4, False), ([0, 1, 2, 3], FOREVER, False), ([0, 2], 5.5, False)]
    done = await run(calls, Patience(1, timeout_after_k_min=2))
    assert done.outcomes == ["answered", "answered", "late", "answered"]
    assert done.took == 6
    assert done.cancelled == ["ffn.2"]


async def test_samples_that_have_lost_their_experts_do_not_keep_the_others_waiting(autojump_clock, run) -> None:
    calls = [([0, 1], 1, False), ([2, 3], 2, True), ([0, 1], FOREVER, False)]
    done = await run(calls, Patience(1, timeout_after_k_min=3))
    assert done.outcomes == ["answered", "failed", "late"]
    assert done.took == 5


async def test_the_timeout_bounds_all_of_it(autojump_clock, run) -> None:
    done = await run([([0, 1], 1, False), ([2, 3], FOREVER, False)], Patience(1, timeout=7, timeout_after_k_min=100))
    assert done.outcomes == ["answered", "late"]
    assert done.took == 7


async def test_with_k_min_0_the_straggler_time_counts_from_the_start(autojump_clock, run) -> None:
    done = await run([([0, 1, 2, 3], FOREVER, False)], Patience(0, timeout_after_k_min=2))
    assert (done.outcomes, done.took) == (["late"], 2)


async def test_samples_whose_experts_are_stuck_do_not_wait_for_all_of_the_timeout(autojump_clock, run) -> None:
    stuck = ([2, 3], FOREVER, False)
    done = await run([([0, 1], 1, False), stuck], Patience(1, timeout=60, stuck_after=5))
    assert (done.outcomes, done.took) == (["answered", "late"], 5)


async def test_who_has_an_answer_waits_for_the_others_as_long_as_it_may(autojump_clock, run) -> None:
    calls = [([0, 1, 2, 3], 1, False), ([2, 3], 9, False)]
    done = await run(calls, Patience(1, timeout=60, stuck_after=5))
    assert (done.outcomes, done.took) == (["answered", "answered"], 9)
    done = await run(calls, Patience(1, timeout=60, stuck_after=50))
    assert (done.outcomes, done.took) == (["answered", "answered"], 9), "nothing is waited for when all have ended"


async def test_cancelling_it_cancels_every_call(autojump_clock, run) -> None:
    with trio.move_on_after(1) as scope:
        await run([([0], FOREVER, False), ([1], FOREVER, False)], Patience(1))
    assert scope.cancelled_caught


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 4), min_size=1), st.booleans()), max_size=8),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_a_quorum_is_settled_when_no_sample_can_gain_what_it_lacks(calls, k_min, random) -> None:
    rows = [torch.tensor(sorted(its)) for its, _ in calls]
    quorum = Quorum(torch.zeros(5, dtype=torch.int64), rows, k_min)
    order = list(range(len(calls)))
    random.shuffle(order)
    for done in range(len(order) + 1):
        if done:
            quorum.ended(order[done - 1], answered=calls[order[done - 1]][1])
        ended, open_ = order[:done], order[done:]
        has = [sum(sample in calls[call][0] and calls[call][1] for call in ended) for sample in range(5)]
        waits = [any(sample in calls[call][0] for call in open_) for sample in range(5)]
        assert quorum.answers.tolist() == has
        assert quorum.settled == all(has[at] >= k_min or not waits[at] for at in range(5))
