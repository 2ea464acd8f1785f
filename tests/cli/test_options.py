"""What commands that serve decide when nobody else has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hivemind_p2p.cli.options import for_serving
from hivemind_p2p.config import ControlSettings, NATSettings, NodeSettings, Settings

PEER = "/ip4/44.1.1.1/tcp/1/p2p/12D3KooWSzyjKBkg2TrVkdoZqcPZXxPrZpF1xwMBmdPAdaB7yZRs"


@pytest.mark.parametrize(
    ("initial_peers", "given", "expected"),
    [((), None, True), ((PEER,), None, False), ((), False, False), ((PEER,), True, True)],
)
def test_a_swarm_is_looked_for_nearby_when_none_is_named(initial_peers, given, expected):
    settings = Settings(node=NodeSettings(initial_peers=initial_peers), nat=NATSettings(mdns=given))
    assert for_serving(settings).nat.mdns is expected


@pytest.mark.parametrize(("given", "expected"), [(None, True), (False, False), (True, True)])
def test_they_answer_other_commands(given, expected):
    assert for_serving(replace(Settings(), control=ControlSettings(serve=given))).control.serve is expected
