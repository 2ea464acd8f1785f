"""Nodes on loopback, over real sockets: what ``hivemind_p2p.Node`` promises."""

from __future__ import annotations

import pytest
import trio

from hivemind_p2p import Node
from hivemind_p2p.config import DHTSettings, Settings
from hivemind_p2p.dht import get_dht_time
from hivemind_p2p.errors import (
    BootstrapError,
    ConfigError,
    DialError,
    InvalidRecord,
    ListenError,
    NodeClosed,
    ProtocolNotSupported,
)
from hivemind_p2p.rpc import CallContext
from hivemind_p2p.transport.api import Stream
from hivemind_p2p.wire.dht_pb2 import FindRequest

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
ECHO = "/my/echo/1.0.0"


def address(node: Node) -> str:
    return str(node.visible_maddrs[0])


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def test_a_swarm_of_four_stores_and_finds():
    async with Node(host_maddrs=LOOPBACK) as first:
        initial_peers = [address(first)]
        async with (
            Node(initial_peers, host_maddrs=LOOPBACK) as second,
            Node([address(second)], host_maddrs=["/ip6/::1/tcp/0"]) as third,
            Node(initial_peers, client_mode=True) as client,
        ):
            nodes, soon = [first, second, third, client], get_dht_time() + 60
            for number, node in enumerate(nodes):
                assert await node.dht.store(f"key {number}", {"number": number}, soon)
                assert await node.dht.store("experts", f"of {number}", soon, subkey=number)
            for node in nodes:
                keys = [f"key {number}" for number in range(4)]
                found = await node.dht.get_many([*keys, "nobody's"], float("inf"))
                assert [found[key].value for key in keys] == [{"number": number} for number in range(4)]
                assert found["nobody's"] is None
                parts = (await node.dht.get("experts", latest=True)).value
                assert {subkey: item.value for subkey, item in parts.items()} == {n: f"of {n}" for n in range(4)}
            assert client.visible_maddrs == []
            assert "client mode" in repr(client)
            assert str(third.visible_maddrs[0]).startswith("/ip6/::1/tcp/")
            with pytest.raises(InvalidRecord):
                await client.dht.store("key", object(), soon)


async def test_a_peer_is_found_by_its_id_alone():
    """The third node knows the first only, and the DHT tells it where the second is."""
    async with (
        Node(host_maddrs=LOOPBACK) as first,
        Node([address(first)], host_maddrs=LOOPBACK) as second,
        Node([address(first)], client_mode=True) as third,
    ):
        second.set_stream_handler(ECHO, echo)
        found = await third.dht.find_peer(second.peer_id)
        assert [f"{maddr}/p2p/{second.peer_id}" for maddr in found] in ([], [address(second)])  # [] if known before
        async with await third.open_stream(second.peer_id, ECHO) as stream:
            await stream.send_all(b"found you")
            assert await stream.read_exactly(9) == b"found you"
        assert second.peer_id in {connection.peer_id for connection in third.connections()}
        second.set_stream_handler(ECHO, None)
        stream = await third.open_stream(second.peer_id, ECHO)  # it is not asked before: it seems to speak it
        with pytest.raises(ProtocolNotSupported, match=ECHO):
            await stream.receive_some()


async def test_the_swarm_outlives_its_bootstrap_peer(start_node):
    bootstrap = start_node("bootstrap", "--host-maddrs", *LOOPBACK)
    async with (
        Node([bootstrap.address], host_maddrs=LOOPBACK) as one,
        Node([bootstrap.address], host_maddrs=LOOPBACK) as other,
    ):
        bootstrap.process.kill()
        bootstrap.process.wait()
        assert await one.dht.store("key", "value", get_dht_time() + 60)
        assert (await other.dht.get("key")).value == "value"
        async with Node([bootstrap.address, address(other)], host_maddrs=LOOPBACK) as late:
            assert (await late.dht.get("key")).value == "value"
            assert await late.dht.store("late", 1, get_dht_time() + 60)
        assert (await one.dht.get("late")).value == 1  # it has left, and its replicas have not
        with pytest.raises(BootstrapError, match="none of the 1 initial peers") as caught:
            async with Node([bootstrap.address]):
                raise AssertionError("nobody is there to join")
        assert bootstrap.address in str(caught.value)


async def test_an_identity_is_kept_and_its_peer_found_again(tmp_path):
    identity, kept = tmp_path / "identity", []
    async with Node(host_maddrs=LOOPBACK) as first:
        for _ in range(2):
            async with Node([address(first)], host_maddrs=LOOPBACK, identity_path=identity) as node:
                kept.append(node.peer_id)
                assert await first.connect(address(node)) == node.peer_id
        assert kept[0] == kept[1]
        assert identity.stat().st_mode & 0o777 == 0o600


async def test_what_is_wrong_is_said():
    with pytest.raises(ConfigError, match=r"initial_peers.*not a multiaddr"):
        Node(["127.0.0.1:1234"])
    with pytest.raises(ConfigError, match="/p2p/<peer id>"):
        Node(["/ip4/127.0.0.1/tcp/1234"])
    with pytest.raises(ConfigError, match="a single address"):
        Node("/ip4/127.0.0.1/tcp/1234")
    async with Node(host_maddrs=LOOPBACK) as node:
        taken = address(node).partition("/p2p/")[0]
        with pytest.raises(ListenError, match=taken):
            async with Node(host_maddrs=[taken]):
                raise AssertionError("two cannot listen there")
        with pytest.raises(DialError):
            await node.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{node.peer_id}")
        with pytest.raises(NodeClosed, match="started before"):
            await node.__aenter__()
    for use in (lambda: node.dht, lambda: node.rpc, lambda: node.network, lambda: node.peer_id):
        with pytest.raises(NodeClosed, match="async with"):
            use()
    assert repr(node) == "<Node, not running>"
    with pytest.raises(KeyError, match="mine"):  # as it is, not in a group
        async with Node(host_maddrs=LOOPBACK):
            raise KeyError("mine")


async def test_strangers_who_talk_nonsense_do_no_harm():
    async with Node(host_maddrs=LOOPBACK) as node:
        port = int(node.visible_maddrs[0].value_for_protocol("tcp"))
        for nonsense in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff" * 100_000,
            b"\x13/multistream/1.0.0\n\x07/noise\n" * 50,
        ):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                try:
                    await stream.send_all(nonsense)
                    await stream.send_eof()
                    with trio.fail_after(20):
                        while await stream.receive_some():
                            pass
                except trio.BrokenResourceError:
                    pass  # it hung up on us
        async with Node([address(node)], client_mode=True) as other:
            assert await other.dht.store("key", 1, get_dht_time() + 60)
        assert node.connections() == [] or all(not connection.closed for connection in node.connections())


async def test_leaving_is_quick_with_calls_under_way():
    """Nobody waits for the dead when a node is shut down."""
    settings = Settings(dht=DHTSettings(wait_timeout=30.0))
    asked = trio.Event()

    async def say_nothing(request: FindRequest, context: CallContext) -> FindRequest:
        asked.set()
        await trio.sleep_forever()
        return request

    async def get(node: Node) -> None:
        with pytest.raises(NodeClosed):
            await node.dht.get("key")

    async with Node(host_maddrs=LOOPBACK) as silent, trio.open_nursery() as nursery:
        silent.rpc.unregister("DHTProtocol.rpc_find")
        silent.rpc.register("DHTProtocol.rpc_find", FindRequest, say_nothing)
        async with Node(host_maddrs=LOOPBACK, settings=settings) as node:
            await node.dht.protocol.ping(await node.connect(address(silent)))
            nursery.start_soon(get, node)
            await asked.wait()
            before = trio.current_time()
        assert trio.current_time() - before < 10
