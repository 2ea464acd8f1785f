"""libp2p's peer routing between real hosts in memory, and what peers send that they should not."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace

import pytest
from multiaddr import Multiaddr

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import DHTNode
from hivemind_p2p.dht.asking import asking
from hivemind_p2p.dht.peer_routing import PROTOCOL, PeerRouting
from hivemind_p2p.errors import ProtocolNotSupported, StreamError
from hivemind_p2p.kademlia import SHA256
from hivemind_p2p.rpc import RPC
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.memory import MemoryWire
from hivemind_p2p.wire.framing import varint
from hivemind_p2p.wire.kad_pb2 import Message
from hivemind_p2p.wire.peer_id import PeerID
from tests.dht.swarm import now

SETTINGS = DHTSettings(bucket_size=6, num_replicas=1, alpha=2)  # a lookup hears the whole of the longest chain


@asynccontextmanager
async def routers(count: int) -> AsyncIterator[list[tuple[Host, PeerRouting]]]:
    """Hosts in a chain: each knows the next one, and routes."""
    wire = MemoryWire()
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            ip = f"10.0.0.{number + 1}"
            host = Host(
                Identity.generate(), host_maddrs=[Multiaddr(f"/ip4/{ip}/tcp/4001")], transport=wire.transport(ip)
            )
            routing = PeerRouting(await stack.enter_async_context(host), SETTINGS, now)
            routing.serve()
            found.append((host, routing))
        for (host, routing), (following, _) in itertools.pairwise(found):
            host.add_addresses(following.peer_id, following.visible_maddrs)
            routing.alive(following.peer_id)
        yield found


async def ask_in_vain(first: Host, last: Host) -> None:
    stream = await first.open_stream(last.peer_id, PROTOCOL)
    await stream.receive_some()  # who is known to speak it is not waited for before


async def test_a_peer_at_the_end_of_a_chain_is_found(autojump_clock):
    async with routers(6) as chain:
        (first, routing), (last, last_routing) = chain[0], chain[-1]
        assert [str(maddr) for maddr in await routing.find_peer(last.peer_id, ())] == ["/ip4/10.0.0.6/tcp/4001"]
        assert await routing.find_peer(last.peer_id, await routing.find_peer(last.peer_id, ())) == []
        assert await routing.find_peer(Identity.generate().peer_id, ()) == []
        assert await last_routing.find_peer(first.peer_id, ()) == []  # it knows nobody
        assert repr(last_routing) == "<PeerRouting over 0 peers>"
        last_routing.stop()
        with pytest.raises(ProtocolNotSupported):
            await ask_in_vain(first, last)


def test_peers_that_were_connected_once_make_room_when_they_are_no_more():
    connected = set[PeerID]()
    peers = [PeerID(b"\x00\x02" + number.to_bytes(2, "big")) for number in range(2001)]
    network = SimpleNamespace(peer_id=peers.pop(), connections=lambda peer: [peer] if peer in connected else [])
    routing = PeerRouting(network, SETTINGS, lambda: 0.0)
    connected.update(peers[:1000])
    for peer in peers[:1000]:
        routing.alive(peer)
    connected.clear()
    for peer in peers[1000:]:
        routing.alive(peer)
    far = min(routing.table.buckets, key=lambda bucket: bucket.depth)  # many came that belong there
    assert len(far.contacts) == SETTINGS.bucket_size
    assert not set(peers[:1000]).intersection(far.contacts.values())


async def test_a_dead_router_is_passed_by_and_forgotten(autojump_clock):
    async with routers(3) as chain:
        (_, routing), (middle, _), (last, _) = chain
        dead = Identity.generate().peer_id
        chain[0][0].add_addresses(dead, [Multiaddr("/ip4/10.0.0.99/tcp/1")])
        routing.alive(dead)
        assert await routing.find_peer(Identity.generate().peer_id, ()) == []
        assert {contact.peer for contact in routing.table} == {middle.peer_id, last.peer_id}


async def test_in_the_middle_of_a_lookup_only_those_who_named_a_peer_are_asked(autojump_clock):
    async with routers(3) as chain:
        (first, routing), (middle, _), (last, _) = chain
        async with RPC(first) as rpc, DHTNode(rpc, SETTINGS, clock=now, client_mode=True) as node:
            routing = node.protocol.peer_routing
            routing.named([last.peer_id], by=middle.peer_id)
            with asking():
                assert await node.find_peer(last.peer_id) == []  # we are not connected to who named it
                assert first.connections() == []
                await first.connect(middle.visible_maddrs[0])
                found = await node.find_peer(last.peer_id)
                assert [str(maddr) for maddr in found] == ["/ip4/10.0.0.3/tcp/4001"]
                assert await node.find_peer(Identity.generate().peer_id) == []


async def test_who_named_whom_is_bounded():
    async with routers(1) as [(_, routing)]:
        peers = [PeerID(b"\x00\x04" + number.to_bytes(4, "big")) for number in range(5000)]
        routing.named(peers, by=peers[0])
        for namer in peers[:10]:
            routing.named(peers[-1:], by=namer)
        assert len(routing._named_by) == 4096
        assert routing._named_by[peers[-1]] == peers[9:6:-1]


def framed(message: Message) -> bytes:
    data = message.SerializeToString()
    return varint(len(data)) + data


@pytest.mark.parametrize(
    "sent",
    [
        b"\x05nonsense",
        b"\xff" * 12,
        varint(2**20),
        framed(Message(type=Message.PUT_VALUE, key=b"k")),
        framed(Message(type=Message.FIND_NODE)),
        framed(Message(type=Message.FIND_NODE, key=bytes(1000))),
    ],
)
async def test_garbage_ends_the_stream_and_nothing_else(autojump_clock, sent: bytes):
    async with routers(2) as chain:
        (first, routing), (second, _) = chain
        stream = await first.open_stream(second.peer_id, PROTOCOL)
        await stream.send_all(sent)
        with pytest.raises(StreamError):
            await stream.read_exactly(1)
        assert await routing.find_peer(Identity.generate().peer_id, ()) == []


async def test_several_questions_on_one_stream_and_a_ping(autojump_clock):
    async with routers(2) as [(first, _), (second, routing)]:
        routing.alive(first.peer_id)
        async with await first.open_stream(second.peer_id, PROTOCOL) as stream:
            question = Message(type=Message.FIND_NODE, key=b"\x00\x01x")
            for request in (Message(type=Message.PING), question, Message(type=Message.FIND_NODE, key=b"no peer id")):
                await stream.send_all(framed(request))
                [size] = await stream.read_exactly(1)
                answer = Message.FromString(await stream.read_exactly(size))
                assert answer.type == request.type
                assert answer.key == request.key
                # It knows of us, and where: we are connected, and said so.
                named = [(PeerID(peer.id), peer.connection) for peer in answer.closerPeers]
                assert named == [(first.peer_id, Message.CONNECTED)] * (request.type == Message.FIND_NODE)


async def test_answers_that_lie_end_the_lookup_too(autojump_clock):
    async with routers(2) as [(_, routing), (second, _)]:
        liar = Message(type=Message.FIND_NODE)
        liar.closerPeers.extend(
            Message.Peer(id=b"\x00\x04" + number.to_bytes(4, "big"), addrs=[b"\xff\xff", b""]) for number in range(500)
        )
        liar.closerPeers.insert(0, Message.Peer(id=b"garbage"))

        async def lie(stream) -> None:
            await stream.receive_some()
            data = liar.SerializeToString()
            await stream.send_all(varint(len(data)) + data)

        second.set_stream_handler(PROTOCOL, lie)
        assert await routing.find_peer(Identity.generate().peer_id, ()) == []
        assert {contact.peer for contact in routing.table} == {second.peer_id}
        assert SHA256.hash(second.peer_id.to_bytes()) in routing.table
