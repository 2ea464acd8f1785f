"""The race for one peer, without a clock."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from hivemind_p2p.transport.race import Lost, Race, Start, Wait

ADDRESSES = [Multiaddr(f"/ip4/10.0.0.{number}/tcp/4001") for number in range(1, 13)]


def test_the_first_starts_at_once_and_the_next_after_the_stagger():
    race = Race(ADDRESSES[:2], stagger=0.25, parallel=8)
    assert race.next(0.0) == Start(ADDRESSES[0])
    assert race.next(0.0) == Wait(0.25)
    assert race.next(0.25) == Start(ADDRESSES[1])
    assert race.next(0.25) == Wait(math.inf)


def test_a_failure_lets_the_next_one_start_at_once():
    race = Race(ADDRESSES[:2], stagger=0.25, parallel=8)
    race.next(0.0)
    race.failed(ADDRESSES[0])
    assert race.next(0.01) == Start(ADDRESSES[1])
    race.failed(ADDRESSES[1])
    assert race.next(0.01) == Lost()


def test_addresses_that_become_known_later_join():
    race = Race([], stagger=0.25, parallel=8)
    assert race.next(0.0) == Lost()
    race.add(ADDRESSES[:1])
    assert race.next(0.0) == Start(ADDRESSES[0])


@given(
    addresses=st.lists(st.sampled_from(ADDRESSES), max_size=20),
    parallel=st.integers(1, 4),
    durations=st.lists(st.integers(0, 24).map(lambda eighths: eighths / 8), min_size=20, max_size=20),
)
def test_every_address_is_tried_once_in_order_and_in_bounds(addresses, parallel, durations):
    """Drive a race in which every attempt fails after its own time, as the dialer would."""
    race = Race(addresses, stagger=0.25, parallel=parallel)
    now, started, running, failed_since_start = 0.0, [], {}, False
    while True:
        action = race.next(now)
        match action:
            case Start(maddr):
                assert not started or now - started[-1][0] >= 0.25 or failed_since_start
                started.append((now, maddr))
                running[maddr] = now + durations[len(started) - 1]
                failed_since_start = False
            case Wait(until):
                end = min(running.values(), default=math.inf)
                now = max(now, min(until, end))
                assert now < math.inf, "a race that waits for nothing"
                if end <= now:
                    maddr = min(running, key=running.__getitem__)
                    del running[maddr]
                    race.failed(maddr)
                    failed_since_start = True
            case Lost():
                break
        assert len(running) <= parallel
    assert [maddr for _, maddr in started] == list(dict.fromkeys(addresses))
    assert not running
