from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.kademlia import Shares


def test_while_there_is_plenty_everybody_may_use_it():
    shares: Shares[int, str] = Shares(max_count=100, max_bytes=1000, max_share=0.1)
    for n in range(40):
        assert shares.allow("a", 10, count=n, nbytes=10 * n, now=0.0)
        shares.stored("a", n, 10, 50.0, now=0.0)
    assert shares.allow("a", 10, count=50, nbytes=400, now=0.0)
    assert not shares.allow("a", 10, count=51, nbytes=400, now=0.0)
    assert not shares.allow("a", 10, count=50, nbytes=501, now=0.0)
    assert shares.allow("b", 10, count=90, nbytes=900, now=0.0)
    assert not shares.allow("b", 101, count=90, nbytes=900, now=0.0)
    assert repr(shares) == "<Shares of 1 owners in 40 entries>"


def test_what_expired_or_was_taken_over_counts_no_more():
    shares: Shares[int, str] = Shares(max_count=10, max_bytes=100, max_share=0.2)
    shares.stored("a", 1, 10, 50.0, now=0.0)
    shares.stored("a", 2, 10, 60.0, now=0.0)
    assert not shares.allow("a", 1, count=9, nbytes=20, now=0.0)
    assert shares.allow("a", 1, count=9, nbytes=20, now=50.0)
    shares.stored("b", 2, 10, 70.0, now=50.0)
    shares.stored("a", 3, 10, 70.0, now=50.0)
    assert shares.allow("a", 10, count=9, nbytes=20, now=50.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9), st.floats(1, 20)), max_size=40))
def test_shares_add_up(stores):
    shares: Shares[int, int] = Shares(max_count=1, max_bytes=1, max_share=1)
    model: dict[int, tuple[int, int, float]] = {}
    for now, (owner, key, size, expiration) in enumerate(stores):
        shares.stored(owner, key, size, now + expiration, now=float(now))
        model[key] = (owner, size, now + expiration)
        model = {key: item for key, item in model.items() if item[2] > now}
        for one in range(4):
            mine = [item for item in model.values() if item[0] == one]
            share = shares._shares.get(one)
            assert (share.count if share else 0) == len(mine)
            assert (share.nbytes if share else 0) == sum(item[1] for item in mine)
