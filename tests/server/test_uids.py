from __future__ import annotations

import pytest

from hivemind_p2p.dht import get_dht_time
from hivemind_p2p.errors import ConfigError, InvalidUID
from hivemind_p2p.server import declare_experts
from hivemind_p2p.server.uids import draw_uids, grid_for
from hivemind_p2p.sync import DHT


@pytest.fixture(scope="module")
def dht():
    with DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"]) as dht:
        yield dht


def test_only_free_uids_are_drawn(dht):
    taken = [f"drawn.0.{column}" for column in range(0, 32, 2)]
    declare_experts(dht, taken, get_dht_time() + 60)
    dht.store("drawn.0.1", None, get_dht_time() + 60)  # withdrawn: free again
    drawn = draw_uids(dht, 16, grid_for(16, "drawn.0.[0:32]"))
    assert sorted(drawn) == sorted(f"drawn.0.{column}" for column in range(1, 32, 2))
    assert len(set(draw_uids(dht, 10, grid_for(10, "drawn.[0:16].[0:1000000]")))) == 10
    with pytest.raises(ConfigError, match="are free, and 17 are wanted"):
        draw_uids(dht, 17, grid_for(17, "drawn.0.[0:32]"))
    with pytest.raises(ConfigError, match="has 32 uids, which is not enough for 33 experts"):
        grid_for(33, "drawn.0.[0:32]")
    with pytest.raises(InvalidUID):
        grid_for(1, "drawn.[32]")


def test_draws_differ(dht):
    assert draw_uids(dht, 5, grid_for(5, "grid.[0:256].[0:256]")) != draw_uids(
        dht, 5, grid_for(5, "grid.[0:256].[0:256]")
    )
