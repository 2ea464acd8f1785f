from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht.patience import Patience
from hivemind_p2p.wire.peer_id import PeerID

SETTINGS = DHTSettings(slow_after=1.0, wait_timeout=3.0)
PEERS = [PeerID(b"\x00\x02" + number.to_bytes(2, "big")) for number in range(5000)]


def test_nobody_is_hurried_before_anything_is_known():
    patience = Patience(SETTINGS)
    assert patience.slow_after(PEERS[0]) == 1.0
    assert patience.timeout(PEERS[0]) == 3.0
    assert repr(patience) == "<Patience with 0 peers; of strangers: nothing is known>"


def test_fast_peers_are_late_soon_and_slow_ones_are_not():
    patience = Patience(SETTINGS)
    for _ in range(50):
        patience.answered(PEERS[0], 0.02)
        patience.answered(PEERS[1], 0.5)
    assert patience.slow_after(PEERS[0]) == 0.05
    assert patience.timeout(PEERS[0]) == 1.0
    assert 0.5 < patience.slow_after(PEERS[1]) < 0.6
    assert 2.5 < patience.timeout(PEERS[1]) <= 3.0
    assert patience.slow_after(PEERS[2]) == 1.0  # too few strangers answered so far


def test_strangers_are_measured_by_strangers():
    patience = Patience(SETTINGS)
    for peer in PEERS[:20]:
        patience.answered(peer, 0.2)  # it was dialled
        for _ in range(20):
            patience.answered(peer, 0.01)
    assert patience.slow_after(PEERS[0]) < 0.2
    assert 0.25 <= patience.slow_after(PEERS[30]) < 0.4


def test_who_varies_gets_more_time():
    steady, varying = Patience(SETTINGS), Patience(SETTINGS)
    for number in range(50):
        steady.answered(PEERS[0], 0.1)
        varying.answered(PEERS[0], 0.02 if number % 2 else 0.18)
    assert varying.slow_after(PEERS[0]) > 2 * steady.slow_after(PEERS[0])


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 100)), max_size=50))
def test_the_settings_are_the_most(samples):
    patience = Patience(SETTINGS)
    for number, seconds in samples:
        patience.answered(PEERS[number], seconds)
    for peer in PEERS[:5]:
        assert 0 < patience.slow_after(peer) <= 1.0
        assert 1.0 <= patience.timeout(peer) <= 3.0


def test_memory_is_bounded():
    patience = Patience(SETTINGS)
    for peer in PEERS:
        patience.answered(peer, 0.01)
    assert repr(patience) == "<Patience with 4096 peers; of strangers: 10.0 ms>"


def test_when_to_ask_another_as_well():
    patience = Patience(SETTINGS)
    assert patience.hedge_after(PEERS[0]) is None
    for _ in range(50):
        patience.answered(PEERS[0], 0.001)
        patience.answered(PEERS[1], 0.1)
    assert patience.hedge_after(PEERS[0]) == 0.02
    assert 0.1 <= patience.hedge_after(PEERS[1]) <= patience.slow_after(PEERS[1]) < 0.2
