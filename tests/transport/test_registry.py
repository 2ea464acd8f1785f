"""Which of several connections to one peer is used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.registry import ConnectionRegistry

SMALLER, LARGER = sorted(Identity.generate().peer_id for _ in range(2))
RELAY = Identity.generate().peer_id


def connection(opened_at: float, *, outbound: bool = True, relayed: bool = False, closed: bool = False) -> Any:
    relay = RELAY if relayed else None
    return SimpleNamespace(
        peer_id=LARGER,
        opened_at=opened_at,
        outbound=outbound,
        relay=relay,
        closed=closed,
        doubted=False,
        is_visit=False,
    )


@pytest.mark.parametrize("direct_first", [True, False])
def test_a_direct_connection_goes_before_a_relayed_one_whenever_it_came(direct_first: bool):
    registry = ConnectionRegistry(SMALLER)
    direct, relayed = connection(0 if direct_first else 60), connection(60 if direct_first else 0, relayed=True)
    first, second = (direct, relayed) if direct_first else (relayed, direct)
    assert registry.add(first) == []
    assert registry.add(second) == [relayed]
    assert registry.best(LARGER) is direct
    assert list(registry.of(LARGER)) == [direct, relayed]


def test_the_relayed_one_is_used_again_when_the_direct_one_is_gone():
    registry = ConnectionRegistry(SMALLER)
    direct, relayed = connection(1), connection(0, relayed=True)
    registry.add(relayed)
    registry.add(direct)
    direct.closed = True
    assert registry.best(LARGER) is relayed
    registry.remove(direct)
    assert registry.best(LARGER) is relayed


def test_of_two_direct_ones_of_one_moment_both_sides_choose_the_one_that_the_smaller_id_dialled():
    registry = ConnectionRegistry(SMALLER)
    ours, theirs, relayed = connection(0), connection(1, outbound=False), connection(2, relayed=True)
    for each in (relayed, theirs, ours):
        registry.add(each)
    assert registry.best(LARGER) is ours


def test_the_newer_one_of_two_that_the_same_side_dialled():
    registry = ConnectionRegistry(SMALLER)
    older, newer = connection(0), connection(1)
    registry.add(older)
    assert registry.add(newer) == [older]
    assert registry.best(LARGER) is newer
    assert repr(registry) == "<ConnectionRegistry: 2 connections to 1 peers>"


def test_one_that_may_be_dead_is_used_only_if_there_is_no_other():
    registry = ConnectionRegistry(SMALLER)
    direct, relayed = connection(0), connection(1, relayed=True)
    registry.add(direct)
    direct.doubted = True
    assert registry.best(LARGER) is direct
    registry.add(relayed)
    assert registry.best(LARGER) is relayed
    direct.doubted = False
    assert registry.best(LARGER) is direct


def test_a_visit_is_used_only_where_there_is_no_other_connection():
    registry = ConnectionRegistry(SMALLER)
    ours, visit = connection(0), connection(60, outbound=False)
    registry.add(ours)
    registry.visitors[LARGER] += 1
    assert registry.add(visit) == []
    assert registry.best(LARGER) is ours
    ours.closed = True
    assert registry.best(LARGER) is visit
    del registry.visitors[LARGER]
    later = connection(90, outbound=False)
    registry.add(later)
    assert registry.best(LARGER) is later
