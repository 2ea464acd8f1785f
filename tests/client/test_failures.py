from __future__ import annotations

import pytest

from hivemind_p2p.client.beam_search import ExpertInfo
from hivemind_p2p.client.failures import MAX_REMEMBERED, RecentFailures
from hivemind_p2p.errors import ConnectionLost, DeadlineExceeded, DialError, RemoteError, StreamReset
from hivemind_p2p.wire.peer_id import PeerID

ONE, OTHER = (PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes([number]) * 32) for number in (1, 2))
EXPERT = ExpertInfo("ffn.0", ONE)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_pause_doubles_up_to_a_minute_and_a_success_ends_it() -> None:
    clock = Clock()
    failures = RecentFailures(clock)
    for pause in (5, 10, 20, 40, 60, 60):
        failures.add(EXPERT)
        failures.add(EXPERT)  # of the same batch
        clock.now += pause - 0.1
        assert EXPERT in failures
        clock.now += 0.2
        assert EXPERT not in failures
    failures.clear(EXPERT)
    failures.add(EXPERT)
    clock.now += 5.1
    assert EXPERT not in failures
    assert repr(failures) == "<RecentFailures: 0 avoided now, 1 remembered>"


@pytest.mark.parametrize(
    ("error", "whole_peer"),
    [(DialError("x"), True), (ConnectionLost("x"), True), (StreamReset("x"), False), (RemoteError("x"), False)],
)
def test_a_peer_that_is_gone_takes_all_its_experts_with_it(error, whole_peer) -> None:
    failures = RecentFailures(Clock())
    failures.add(EXPERT, error)
    assert EXPERT in failures
    assert (ExpertInfo("ffn.1", ONE) in failures) == whole_peer
    assert ExpertInfo("ffn.0", OTHER) not in failures, "it has moved"
    failures.clear(ExpertInfo("ffn.1", ONE))
    assert (EXPERT in failures) != whole_peer


@pytest.mark.parametrize("error", [None, DeadlineExceeded("x")])
@pytest.mark.parametrize("answered_meanwhile", [True, False])
def test_who_is_late_and_answers_nothing_else_is_gone(error, answered_meanwhile) -> None:
    clock = Clock()
    failures = RecentFailures(clock)
    failures.clear(ExpertInfo("ffn.1", ONE))
    clock.now += 9
    if answered_meanwhile:
        failures.clear(ExpertInfo("ffn.1", ONE))
    failures.add(EXPERT, error, lasted=8)
    assert EXPERT in failures
    assert (ExpertInfo("ffn.1", ONE) in failures) != answered_meanwhile


def test_no_more_are_remembered_than_there_is_room_for() -> None:
    failures = RecentFailures(Clock())
    for number in range(MAX_REMEMBERED + 10):
        failures.add(ExpertInfo(f"ffn.{number}", ONE))
    assert len(failures) == MAX_REMEMBERED
    assert EXPERT not in failures
