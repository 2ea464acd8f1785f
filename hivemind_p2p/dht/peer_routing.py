"""libp2p's peer routing: where is the peer with this id? FIND_NODE of ``/ipfs/kad/1.0.0``, asked and answered.

hivemind's DHT names peers without saying where they are; its daemon asks for that here. So a node that is to live among
hivemind's peers answers, or two of them that know only us would never meet; and it asks, or it could dial nobody that
they name. The space is that of SHA-256 over peer ids, the lookup the same as for the DHT.

In the middle of a lookup of the DHT a peer without an address is asked for at those who named it, whom we are connected
to, and nowhere else: looking for a peer must not start to look for more peers.

Source: libp2p specifications, "kad-dht"; of its messages those that go-libp2p needs of a peer router.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final

import trio
from google.protobuf.message import DecodeError
from multiaddr import Multiaddr

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht.asking import asking
from hivemind_p2p.dht.messages import PeerContact, maddrs_in
from hivemind_p2p.errors import HivemindError, ProtocolViolation
from hivemind_p2p.kademlia import SHA256, Contact, Lookup, Request, RoutingTable
from hivemind_p2p.rpc.framed import FramedStream
from hivemind_p2p.transport.api import Network, Stream
from hivemind_p2p.wire.framing import varint, varint_header
from hivemind_p2p.wire.kad_pb2 import Message
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
PROTOCOL: Final = "/ipfs/kad/1.0.0"
_LARGEST: Final = 2**17
"""Bytes of one message; twenty peers with sixteen addresses each are less than 20 KiB."""
_LARGEST_KEY: Final = 128
_IDLE: Final = 60.0
"""Seconds that a peer may keep a stream open without asking."""
_REMEMBERED: Final = 4096
_NAMERS: Final = 3


class PeerRouting:
    """The peers that route for us, and what we route for others.

    Args:
        clock: any clock, seconds.
    """

    def __init__(self, network: Network, settings: DHTSettings, clock: Callable[[], float]) -> None:
        self._network, self._settings, self._clock = network, settings, clock
        self._own: PeerContact = _contact(network.peer_id)
        self.table: RoutingTable[PeerID] = RoutingTable(
            self._own, space=SHA256, bucket_size=settings.bucket_size, now=clock()
        )
        self._named_by: OrderedDict[PeerID, list[PeerID]] = OrderedDict()

    def serve(self) -> None:
        """Start to answer."""
        self._network.set_stream_handler(PROTOCOL, self._serve)

    def stop(self) -> None:
        """Stop to answer."""
        self._network.set_stream_handler(PROTOCOL, None)

    def alive(self, peer: PeerID) -> None:
        """A full member of the swarm has given a sign of life: it routes."""
        now = self._clock()
        in_the_way = self.table.heard_from(_contact(peer), now)
        if in_the_way is None:
            return
        if self._network.connections(in_the_way.peer):
            self.table.heard_from(in_the_way, now)  # a sign of life; the next time it is another's turn
        else:
            self.table.remove(in_the_way.node_id)

    def silent(self, peer: PeerID) -> None:
        """A peer did not answer."""
        node_id = self.table.id_of(peer)
        if node_id is not None:
            self.table.remove(node_id)

    def named(self, peers: Iterable[PeerID], by: PeerID) -> None:
        """Peers were named to us without an address; whoever named them may know one."""
        for peer in peers:
            namers = self._named_by.pop(peer, [])
            self._named_by[peer] = [by, *(other for other in namers if other != by)][:_NAMERS]
            if len(self._named_by) > _REMEMBERED:
                self._named_by.popitem(last=False)

    async def ask_namers(self, peer_id: PeerID) -> Sequence[Multiaddr]:
        """Addresses of a peer, as those say who named it, without dialling anybody."""
        namers = [peer for peer in self._named_by.get(peer_id, ()) if self._network.connections(peer)]
        found: dict[Multiaddr, None] = {}

        async def ask(peer: PeerID) -> None:
            try:
                told = await self._find_node(peer, peer_id)
            except HivemindError as error:
                logger.debug("%s named %s, and does not say where it is: %s", peer, peer_id, error)
                return
            found.update(dict.fromkeys(told.get(peer_id, ())))
            if found:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for namer in namers:
                nursery.start_soon(ask, namer)
        return list(found)

    async def find_peer(self, peer_id: PeerID, known: Iterable[Multiaddr]) -> Sequence[Multiaddr]:
        """Addresses of a peer beside those that are ``known``; empty when nobody tells any. It is not asked itself."""
        target = SHA256.hash(peer_id.to_bytes())
        seeds = self.table.nearest(target, self._settings.bucket_size, exclude=(target,))
        lookup = Lookup([target], seeds, own=self._own, width=self._settings.bucket_size, alpha=self._settings.alpha)
        known, found = set(known), dict[Multiaddr, None]()

        async def ask(request: Request[PeerID]) -> None:
            peer = request.contact.peer
            try:
                with asking():
                    told = await self._find_node(peer, peer_id)
            except HivemindError as error:
                logger.debug("%s does not route to %s: %s", peer, peer_id, error)
                self.silent(peer)
                lookup.failed(request)
            else:
                self.alive(peer)
                for named, maddrs in told.items():
                    self._network.add_addresses(named, maddrs)
                found.update(dict.fromkeys(maddr for maddr in told.get(peer_id, ()) if maddr not in known))
                others = [_contact(named) for named in told if named != peer_id]
                lookup.answered(request, request.contact.node_id, {target: others})
            if found:
                lookup.finish(target)
            go_on()

        def go_on() -> None:
            for request in lookup.next_requests():
                nursery.start_soon(ask, request)
            if lookup.done:
                nursery.cancel_scope.cancel()

        with trio.move_on_after(self._settings.lookup_timeout):
            async with trio.open_nursery() as nursery:
                go_on()
        return list(found)

    def __repr__(self) -> str:
        return f"<PeerRouting over {len(self.table)} peers>"

    async def _find_node(self, peer: PeerID, wanted: PeerID) -> dict[PeerID, list[Multiaddr]]:
        """Ask one peer; whom it names, and where they are. Raises HivemindError."""
        with trio.move_on_after(self._settings.wait_timeout):
            stream = await self._network.open_stream(peer, PROTOCOL)
            framed = FramedStream(stream, varint_header, _LARGEST)
            try:
                await _send(framed, Message(type=Message.FIND_NODE, key=wanted.to_bytes()))
                frame = await framed.receive()
            except BaseException:
                await stream.reset()
                raise
            await stream.aclose()
            if frame is None:
                raise ProtocolViolation(f"{peer} ended the stream without an answer")
            return self._peers_in(_message(frame.body))
        raise ProtocolViolation(f"{peer} did not answer within {self._settings.wait_timeout:g} s")

    async def _serve(self, stream: Stream) -> None:
        """Answer the questions of one stream, one after the other."""
        framed = FramedStream(stream, varint_header, _LARGEST)
        with trio.move_on_after(_IDLE) as patience:
            try:
                while (frame := await framed.receive()) is not None:
                    await _send(framed, self._answer(_message(frame.body)))
                    patience.deadline = trio.current_time() + _IDLE
            except HivemindError as error:
                logger.debug("the questions of %s about peers ended: %s", stream.peer_id, error)
                await stream.reset()

    def _answer(self, request: Message) -> Message:
        """Raises ProtocolViolation for what we do not serve: values and providers are kept elsewhere."""
        if request.type == Message.PING:
            return Message(type=Message.PING)
        if request.type != Message.FIND_NODE or not 0 < len(request.key) <= _LARGEST_KEY:
            raise ProtocolViolation(f"a request of type {request.type} for a key of {len(request.key)} bytes")
        nearest = self.table.nearest(SHA256.hash(request.key), self._settings.bucket_size)
        try:
            peers = dict.fromkeys([PeerID(request.key), *(contact.peer for contact in nearest)])
        except ValueError:  # a key of another kind; go asks for random ones to fill its table
            peers = dict.fromkeys(contact.peer for contact in nearest)
        response = Message(type=Message.FIND_NODE, key=request.key)
        for peer in peers:
            maddrs = self._addresses(peer)
            if maddrs:
                connected = Message.CONNECTED if self._network.connections(peer) else Message.NOT_CONNECTED
                response.closerPeers.append(Message.Peer(id=peer.to_bytes(), addrs=maddrs, connection=connected))
        return response

    def _addresses(self, peer: PeerID) -> list[bytes]:
        return [maddr.to_bytes() for maddr in self._network.addresses(peer)[: self._settings.max_addresses]]

    def _peers_in(self, response: Message) -> dict[PeerID, list[Multiaddr]]:
        peers = {}
        for peer in response.closerPeers[: 2 * self._settings.bucket_size]:
            try:
                peers[PeerID(peer.id)] = maddrs_in(peer.addrs, self._settings.max_addresses)
            except ValueError:
                continue
        return peers


@lru_cache(2**14)
def _contact(peer: PeerID) -> PeerContact:
    return Contact(SHA256.hash(peer.to_bytes()), peer)


def _message(body: bytearray) -> Message:
    try:
        return Message.FromString(bytes(body))
    except DecodeError:
        raise ProtocolViolation(f"{len(body)} bytes are no message of {PROTOCOL}") from None


async def _send(framed: FramedStream, message: Message) -> None:
    data = message.SerializeToString()
    await framed.send(varint(len(data)), data)
