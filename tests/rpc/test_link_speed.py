from __future__ import annotations

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from hivemind_p2p.rpc.link_speed import MAX_PEERS, LinkSpeeds
from hivemind_p2p.wire.peer_id import PeerID

PEERS = [PeerID(b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big")) for number in range(MAX_PEERS + 1)]


def test_times_add_up_and_old_ones_are_forgotten() -> None:
    speeds = LinkSpeeds()
    assert speeds.of(PEERS[0]) is None
    speeds.add(PEERS[0], 2**20, 1.0)
    assert speeds.of(PEERS[0]) == 2**20
    speeds.add(PEERS[0], 2**22, 1.0)  # half of what is known: as if 1 + 1/4 s were needed for twice a MiB
    assert speeds.of(PEERS[0]) == pytest.approx(2**21 / 1.25)
    for _ in range(20):
        speeds.add(PEERS[0], 2**22, 4.0)
    assert speeds.of(PEERS[0]) == pytest.approx(2**20, rel=1e-3)
    speeds.add(PEERS[0], 2**22, 0.0)
    for peer in PEERS[1:]:
        speeds.add(peer, 2**20, 1.0)
    assert speeds.of(PEERS[0]) is None
    assert repr(speeds) == f"<LinkSpeeds of {MAX_PEERS} peers>"


async def test_both_sides_see_how_fast_large_messages_come(autojump_clock, pair) -> None:
    """Over a link of 10 ms, whose speed is that of its window; small messages tell nothing."""
    caller, callee = pair

    async def echo(request, context) -> BytesValue:
        return request

    async def echo_all(requests, context):
        async for request in requests:
            yield request

    async def items():
        yield BytesValue(value=bytes(2**20))

    callee.register("Test.echo", BytesValue, echo)
    callee.register_stream("Test.echo_all", BytesValue, echo_all)
    peers = caller.network.peer_id, callee.network.peer_id
    await caller.call(peers[1], "Test.echo", BytesValue(value=bytes(1000)), BytesValue)
    assert caller.speeds.of(peers[1]) is callee.speeds.of(peers[0]) is None
    await caller.call(peers[1], "Test.echo", BytesValue(value=bytes(2**20)), BytesValue)
    seen = caller.speeds.of(peers[1]), callee.speeds.of(peers[0])
    assert all(1e6 < speed < 1e9 for speed in seen)
    async with caller.stream_call(peers[1], "Test.echo_all", items(), BytesValue) as responses:
        assert [len(response.value) async for response in responses] == [2**20]
    assert seen != (caller.speeds.of(peers[1]), callee.speeds.of(peers[0]))
