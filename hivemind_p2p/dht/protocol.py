"""``DHTProtocol``: the three calls of hivemind's DHT, made and served, and what a node keeps to answer them.

* ``rpc_ping``: who are you, what time is it, and (``validate``) can you reach me?
* ``rpc_store``: keep these records; each is accepted or refused on its own.
* ``rpc_find``: for each key, the value if you have it, and the nodes nearest to it that you know.

Every request and every answer carries its sender's node id, and so keeps both routing tables fresh; a client sends none
and stays out of tables. Calls return None when the peer failed, whatever the reason: who asks goes on to the next peer.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from google.protobuf.message import Message

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import messages
from hivemind_p2p.dht.asking import asking
from hivemind_p2p.dht.blacklist import Blacklist
from hivemind_p2p.dht.keys import DHTID, DICTIONARY_TAG, REGULAR_TAG
from hivemind_p2p.dht.messages import FindAnswer, Found, PeerContact, StoreItem
from hivemind_p2p.errors import HivemindError
from hivemind_p2p.kademlia import SHA1, Contact, RecordStorage, RoutingTable, ValueWithExpiration
from hivemind_p2p.kademlia.records import Record
from hivemind_p2p.transport.addresses import split_peer
from hivemind_p2p.wire import dht_pb2
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.rpc import RPC, CallContext

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Message)

PING: Final = "DHTProtocol.rpc_ping"
STORE: Final = "DHTProtocol.rpc_store"
FIND: Final = "DHTProtocol.rpc_find"
MESSAGE_ROOM: Final = 3 * 2**20
"""Bytes of values in one message; calls are bounded at 4 MiB, of which ids and addresses take their part."""


@dataclass(frozen=True)
class Pong:
    """An answer to a ping.

    Attributes:
        node_id: None when a client answered.
        available: whether the peer reached us when it tried; only if it was asked to.
        clock_skew: seconds by which the peer's clock is ahead of ours, as far as the travel time lets us know.
    """

    node_id: DHTID | None
    available: bool
    clock_skew: float


class DHTProtocol:
    """One node's records, routing table, and calls.

    Args:
        rpc: makes and serves the calls.
        node_id: ours.
        clock: Unix time in seconds.
        client_mode: serve nothing, tell no node id.
    """

    def __init__(
        self, rpc: RPC, settings: DHTSettings, *, node_id: DHTID, clock: Callable[[], float], client_mode: bool
    ) -> None:
        self.rpc, self.network, self.settings = rpc, rpc.network, settings
        self.clock, self.client_mode = clock, client_mode
        self.own: PeerContact = Contact(node_id, rpc.network.peer_id)
        self.table: RoutingTable[PeerID] = RoutingTable(
            self.own,
            space=SHA1,
            bucket_size=settings.bucket_size,
            depth_modulo=settings.depth_modulo,
            now=clock(),
        )
        self.storage = self._storage(settings.max_stored_records, evict=False)
        self.cache = self._storage(settings.cache_size, evict=True)
        self.blacklist = Blacklist(settings.blacklist_time, settings.backoff_rate)
        self.on_new_contact: Callable[[PeerContact], None] = lambda contact: None
        """Called for every contact that was not in the table before."""
        self.on_contact_to_ping: Callable[[PeerContact], None] = lambda contact: None
        """Called for every contact that stands in the way of another and may be dead."""
        self._limiter = trio.CapacityLimiter(settings.parallel_rpc)

    def serve(self) -> None:
        """Start to answer, unless we are a client."""
        if not self.client_mode:
            self.rpc.register(PING, dht_pb2.PingRequest, self._serve_ping)
            self.rpc.register(STORE, dht_pb2.StoreRequest, self._serve_store)
            self.rpc.register(FIND, dht_pb2.FindRequest, self._serve_find)

    def stop(self) -> None:
        """Stop to answer."""
        if not self.client_mode:
            for method in (PING, STORE, FIND):
                self.rpc.unregister(method)

    # What we ask of others

    async def ping(self, peer: PeerID, *, validate: bool = False, timeout: float | None = None) -> Pong:
        """Ask a peer who it is; with ``validate``, also to try and reach us.

        Args:
            timeout: seconds; by default ``wait_timeout``.

        Raises:
            HivemindError: no answer, and why.
        """
        request = dht_pb2.PingRequest(peer=self._node_info(), validate=validate)
        asked = self.clock()
        try:
            response = await self._request(peer, PING, request, dht_pb2.PingResponse, timeout)
            node_id = messages.node_id_in(response.peer)
        except HivemindError:
            self.silent(peer)
            raise
        answered = self.clock()
        self._heard(peer, response.peer)
        skew = 0.0
        if response.dht_time:
            skew = response.dht_time - min(max(response.dht_time, asked), answered)
        return Pong(node_id, response.available, skew)

    async def store(self, peer: PeerID, items: Sequence[StoreItem]) -> list[bool] | None:
        """Ask a peer to store records, in as many messages as they need.

        Returns:
            For each item whether it was accepted; None when the peer failed.
        """
        accepted: list[bool] = []
        try:
            for part in self._parts(items):
                request = messages.store_request(part, self._node_info())
                response = await self._request(peer, STORE, request, dht_pb2.StoreResponse)
                self._heard(peer, response.peer)
                # An answer of another length than the question says nothing about the items that it leaves out.
                accepted += itertools.islice(itertools.chain(response.store_ok, itertools.repeat(False)), len(part))
        except HivemindError as error:
            logger.debug("cannot store %d records at %s: %s", len(items), peer, error)
            self.silent(peer)
            return None
        return accepted

    async def find(self, peer: PeerID, keys: Sequence[DHTID]) -> FindAnswer | None:
        """Ask a peer for keys, and for whom it knows near them.

        Returns:
            None when the peer failed or is passed over for having failed just now.
        """
        if self.blacklist.passes_over(peer, self.clock()):
            return None
        request = dht_pb2.FindRequest(keys=[SHA1.to_bytes(key) for key in keys], peer=self._node_info())
        try:
            response = await self._request(peer, FIND, request, dht_pb2.FindResponse)
            answer = messages.find_answer(response, keys, self.settings, self.clock())
        except HivemindError as error:
            logger.debug("cannot find %d keys at %s: %s", len(keys), peer, error)
            self.silent(peer)
            return None
        self._heard(peer, response.peer)
        for named, maddrs in answer.addresses.items():
            self.network.add_addresses(named, maddrs)
        return answer

    # What we keep

    def local_record(self, key: DHTID) -> ValueWithExpiration[Record] | None:
        """What we have ourselves for a key, stored or cached, whichever expires later."""
        now = self.clock()
        found = [item for item in (self.storage.get(key, now), self.cache.get(key, now)) if item is not None]
        return max(found, key=lambda item: item.expiration_time, default=None)

    def accept(self, item: StoreItem) -> bool:
        """Store a record of ours or of another peer. False: it is garbage, has expired, is too large or not newer."""
        storage, now = (self.cache if item.in_cache else self.storage), self.clock()
        if item.tag == REGULAR_TAG:
            return storage.store(item.key, item.value, item.expiration_time, now=now)
        try:
            if item.tag == DICTIONARY_TAG:
                dictionary = messages.unpack_dictionary(item.value, self.settings, now)
                return storage.store_record(item.key, dictionary, item.expiration_time, now=now)
            tag = messages.check_tag(item.tag, self.settings)
        except ValueError as error:
            logger.debug("refused a record: %s", error)
            return False
        return storage.store_subkey(item.key, tag, item.value, item.expiration_time, now=now)

    def silent(self, peer: PeerID) -> None:
        """Note that a peer did not answer."""
        self.blacklist.failed(peer, self.clock())
        node_id = self.table.id_of(peer)
        if node_id is not None:
            self.table.remove(node_id)

    # What others ask of us

    async def _serve_ping(self, request: dht_pb2.PingRequest, context: CallContext) -> dht_pb2.PingResponse:
        sender = messages.node_id_in(request.peer)
        response = dht_pb2.PingResponse(peer=self._node_info(), dht_time=self.clock())
        if request.validate and sender is not None:
            try:
                # Half the time: who asked is waiting for as long as we would.
                pong = await self.ping(context.peer_id, timeout=self.settings.wait_timeout / 2)
                response.available = pong.node_id == sender
            except HivemindError as error:
                logger.debug("%s asked whether we reach it, and we do not: %s", context.peer_id, error)
        if response.available or not request.validate:
            self._heard(context.peer_id, request.peer)
        response.dht_time = self.clock()
        return response

    async def _serve_store(self, request: dht_pb2.StoreRequest, context: CallContext) -> dht_pb2.StoreResponse:
        items = messages.store_items(request)
        self._heard(context.peer_id, request.peer)
        limit = self.settings.max_keys_per_message
        accepted = [self.accept(item) for item in items[:limit]] + [False] * len(items[limit:])
        return dht_pb2.StoreResponse(store_ok=accepted, peer=self._node_info())

    async def _serve_find(self, request: dht_pb2.FindRequest, context: CallContext) -> dht_pb2.FindResponse:
        keys = messages.requested_keys(request, self.settings.max_keys_per_message)
        self._heard(context.peer_id, request.peer)
        sender = messages.node_id_in(request.peer)
        exclude = () if sender is None else (sender,)
        response = dht_pb2.FindResponse(peer=self._node_info())
        room, named = MESSAGE_ROOM, set[PeerID]()
        for key in keys:
            nearest = self.table.nearest(key, self.settings.bucket_size, exclude=exclude)
            result = messages.find_result(Found(self.local_record(key), nearest), now=self.clock(), room=room)
            response.results.append(result)
            room -= result.ByteSize()
            named.update(contact.peer for contact in nearest)
        addresses = {peer: self.network.addresses(peer)[: self.settings.max_addresses] for peer in sorted(named)}
        response.nearest_peer_addresses.extend(messages.peer_addresses(addresses))
        return response

    # Underneath

    async def _request(
        self, peer: PeerID, method: str, request: Message, response_type: type[R], timeout: float | None = None
    ) -> R:
        async with self._limiter:
            with asking():
                wait = self.settings.wait_timeout if timeout is None else timeout
                return await self.rpc.call(peer, method, request, response_type, timeout=wait)

    def _heard(self, peer: PeerID, info: dht_pb2.NodeInfo) -> None:
        """A peer sent us something: it lives, and tells where."""
        self.blacklist.answered(peer)
        node_id = messages.node_id_in(info)
        if node_id is None:
            return
        maddrs = [split_peer(maddr)[0] for maddr in messages.maddrs_in(info.maddrs, self.settings.max_addresses)]
        self.network.add_addresses(peer, maddrs)
        contact = Contact(node_id, peer)
        is_new = node_id not in self.table
        to_ping = self.table.heard_from(contact, self.clock())
        if to_ping is not None:
            self.on_contact_to_ping(to_ping)
        if is_new and node_id in self.table:
            self.on_new_contact(contact)

    def _node_info(self) -> dht_pb2.NodeInfo:
        if self.client_mode:
            return messages.node_info(None)
        maddrs = [split_peer(maddr)[0] for maddr in self.network.visible_maddrs[: self.settings.max_addresses]]
        return messages.node_info(self.own.node_id, maddrs)

    def _parts(self, items: Sequence[StoreItem]) -> Iterable[list[StoreItem]]:
        """Items in messages that are not too large."""
        part: list[StoreItem] = []
        room = MESSAGE_ROOM
        for item in items:
            size = len(item.value) + len(item.tag) + 64
            if part and (size > room or len(part) >= self.settings.max_keys_per_message):
                yield part
                part, room = [], MESSAGE_ROOM
            part.append(item)
            room -= size
        if part:
            yield part

    def _storage(self, max_count: int, *, evict: bool) -> RecordStorage:
        return RecordStorage(
            max_count=max_count,
            max_bytes=self.settings.max_stored_bytes,
            max_subkeys=self.settings.max_subkeys,
            max_record_bytes=self.settings.max_record_bytes,
            evict=evict,
        )

    def __repr__(self) -> str:
        mode = "client" if self.client_mode else "server"
        return f"<DHTProtocol {SHA1.to_bytes(self.own.node_id).hex()[:8]}, {mode}, {len(self.table)} contacts>"
