from __future__ import annotations

import logging

import pytest

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht.clock import ClockOffsets
from hivemind_p2p.dht.protocol import PING
from hivemind_p2p.errors import ProtocolViolation
from hivemind_p2p.wire import dht_pb2
from hivemind_p2p.wire.peer_id import PeerID
from tests.dht.swarm import Swarm, address, now

PEERS = [PeerID(b"\x00\x01" + bytes([n])) for n in range(100)]


async def test_every_node_of_a_swarm_is_found(autojump_clock, swarm: Swarm):
    nodes = await swarm.grow(60, DHTSettings(bucket_size=5))
    client = await swarm.node(DHTSettings(bucket_size=5), client_mode=True, clock=lambda: now() - 1.0)
    swarm.kill(nodes[7])
    reports = await client.survey()
    answering = {report.contact.node_id for report in reports if report.ping is not None}
    assert answering == {node.node_id for node in nodes if node is not nodes[7]}
    assert all(report.maddrs for report in reports)
    assert all(report.clock_offset == pytest.approx(1.0, abs=0.1) for report in reports if report.ping is not None)
    assert client.clock_offset == pytest.approx(1.0, abs=0.1)
    assert len(await client.survey(max_nodes=10)) == 10


def test_who_is_alone_with_its_time_is_told(caplog):
    caplog.set_level(logging.WARNING)
    offsets = ClockOffsets(worrying=1.5)
    assert offsets.median is None
    for peer in PEERS[:2]:
        offsets.add(peer, 5.0)
    assert not caplog.records
    for peer in PEERS[2:5]:
        offsets.add(peer, 5.0)
    [warning] = caplog.messages
    assert "the clocks of 3 peers are +5.0 s from ours" in warning
    for peer in PEERS:
        offsets.add(peer, 0.1)
    assert offsets.median == 0.1
    assert repr(offsets) == "<ClockOffsets of 64 peers, median 0.1>"
    for peer in PEERS:
        offsets.add(peer, -2.0)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("time", [float("nan"), float("inf"), float("-inf")])
async def test_who_tells_no_time_is_not_believed(autojump_clock, swarm: Swarm, time: float):
    node, liar = await swarm.node(), await swarm.rpc()
    pong = dht_pb2.PingResponse(peer=dht_pb2.NodeInfo(node_id=bytes(20)), dht_time=time)
    liar.register(PING, dht_pb2.PingRequest, lambda request, context: pong)
    await liar.network.connect(address(node))
    with pytest.raises(ProtocolViolation, match="says that the time is"):
        await node.protocol.ping(liar.network.peer_id)
    assert node.clock_offset is None
    assert len(node.protocol.table) == 0
