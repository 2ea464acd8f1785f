"""Peers of the last run, and swarms that become one."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import base58
import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p import Node
from hivemind_p2p.dht import remembered
from hivemind_p2p.errors import BootstrapError
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.wire.peer_id import PeerID
from tests.dht.swarm import Swarm, address, now

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]


async def test_a_node_comes_back_to_its_swarm(autojump_clock, swarm: Swarm, tmp_path: Path):
    file = tmp_path / "key.peers"
    nodes = await swarm.grow(6)
    async with trio.open_nursery() as nursery:
        short = Swarm(nursery, swarm.world)
        short.nodes = swarm.nodes
        await short.node(remember_in=file)
        await trio.sleep(40)
        assert len(remembered.load(file)) == 6  # noted while it runs, in case that it is killed
        nursery.cancel_scope.cancel()
    swarm.nodes.pop()
    swarm.kill(nodes[0])
    late = await swarm.node(join=False, remember_in=file)
    assert await late.rejoin()
    assert late.node_id in nodes[3].protocol.table
    assert not await (await swarm.node(join=False)).rejoin()


async def test_nobody_of_the_last_run_is_left(autojump_clock, swarm: Swarm, tmp_path: Path):
    file = tmp_path / "peers"
    remembered.save(file, [Multiaddr(f"/ip4/10.0.9.9/tcp/1/p2p/{Identity.generate().peer_id}")])
    node = await swarm.node(remember_in=file)
    assert not await node.rejoin()
    assert len(remembered.load(file)) == 1


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"peers": 5}', '{"peers": ["nonsense"]}', '{"peers": [7]}', "\0", '{"peers": [null]}']
)
def test_a_broken_file_is_passed_over(tmp_path: Path, caplog, content: str):
    file = tmp_path / "peers"
    file.write_text(content)
    assert remembered.load(file) == []
    assert "cannot be read, and are passed over" in caplog.text
    assert remembered.load(tmp_path / "absent") == []


async def test_an_address_of_nobody_is_passed_over(autojump_clock, swarm: Swarm, tmp_path: Path, caplog):
    file, nobody = tmp_path / "peers", base58.b58encode(b"\x00\x46" + bytes(70)).decode()
    file.write_text(json.dumps({"peers": [f"/ip4/10.0.9.9/tcp/1/p2p/{nobody}"]}))
    assert not await (await swarm.node(remember_in=file)).rejoin()
    assert "cannot be read, and are passed over" in caplog.text


def test_a_file_that_cannot_be_written_leaves_no_others_behind(tmp_path: Path, caplog):
    file = tmp_path / "peers"
    file.mkdir()
    for _ in range(3):
        remembered.save(file, [Multiaddr(f"/ip4/10.0.9.9/tcp/1/p2p/{Identity.generate().peer_id}")])
    assert "cannot be kept" in caplog.text
    assert list(tmp_path.iterdir()) == [file]


def test_the_file_is_whole_private_and_bounded(tmp_path: Path, caplog):
    file = remembered.path_beside(tmp_path / "key")
    maddrs = [Multiaddr(f"/ip4/10.0.0.1/tcp/{port}/p2p/{Identity.generate().peer_id}") for port in range(1, 101)]
    remembered.save(file, maddrs)
    assert file == tmp_path / "key.peers"
    assert remembered.load(file) == maddrs[: 2 * remembered.MOST]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    remembered.save(file, [])
    assert len(remembered.load(file)) == 2 * remembered.MOST  # nothing is no news
    assert [path.name for path in tmp_path.iterdir()] == ["key.peers"]
    remembered.save(tmp_path / "no such folder" / "peers", maddrs)
    assert "cannot be kept" in caplog.text


async def test_a_bootstrap_peer_that_restarts_finds_its_swarm(tmp_path: Path, caplog):
    """Real sockets: the first peer of a swarm has no initial peers, and its port may change."""
    identity = tmp_path / "first.key"

    async def run_second(address: str, task_status: trio.TaskStatus[PeerID]) -> None:
        async with Node([address], host_maddrs=LOOPBACK) as node:
            task_status.started(node.peer_id)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        async with Node(host_maddrs=LOOPBACK, identity_path=identity) as first:
            second = await nursery.start(run_second, str(first.visible_maddrs[0]))
        async with Node(host_maddrs=LOOPBACK, identity_path=identity) as again:
            assert {contact.peer for contact in again.dht.protocol.table} == {second}
        dead = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.generate().peer_id}"
        async with Node([dead], host_maddrs=LOOPBACK, identity_path=identity) as again:
            assert {contact.peer for contact in again.dht.protocol.table} == {second}
        assert "joined through peers of the last run instead of the initial ones" in caplog.text
        with pytest.raises(BootstrapError):
            async with Node([dead], host_maddrs=LOOPBACK):
                pass
        nursery.cancel_scope.cancel()


async def test_two_halves_become_one_on_contact(autojump_clock, swarm: Swarm):
    one = await swarm.grow(16)
    swarm.nodes = []
    two = await swarm.grow(16)
    for number in range(8):
        await one[number].store(f"one {number}", number, now() + 1000)
        await two[number].store(f"two {number}", number, now() + 1000)
    await trio.sleep(100)
    await one[3].bootstrap([address(two[4])])
    await trio.sleep(100)
    for number in range(8):
        assert (await one[2 * number].get(f"two {number}")).value == number
        assert (await two[2 * number].get(f"one {number}")).value == number
    for node in [*one, *two]:
        everybody = sorted((other.node_id for other in [*one, *two] if other is not node), key=node.node_id.__xor__)
        assert all(node_id in node.protocol.table for node_id in everybody[:10])
