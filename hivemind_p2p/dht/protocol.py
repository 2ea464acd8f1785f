"""``DHTProtocol``: the three calls of hivemind's DHT, made and served, and what a node keeps to answer them.

* ``rpc_ping``: who are you, what time is it, and (``validate``) can you reach me?
* ``rpc_store``: keep these records; each is accepted or refused on its own.
* ``rpc_find``: for each key, the value if you have it, and the nodes nearest to it that you know.

Every request and every answer carries its sender's node id, and so keeps both routing tables fresh; a client sends none
and stays out of tables. Calls return None when the peer failed, whatever the reason: who asks goes on to the next peer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from hivemind_p2p.config import DHTSettings
from hivemind_p2p.dht import messages
from hivemind_p2p.dht.alarms import Alarms
from hivemind_p2p.dht.asking import asking
from hivemind_p2p.dht.authorization import AuthorizerBase, Request
from hivemind_p2p.dht.blacklist import Blacklist
from hivemind_p2p.dht.clock import ClockOffsets
from hivemind_p2p.dht.keys import DHTID
from hivemind_p2p.dht.messages import FindAnswer, Found, PeerContact, StoreItem
from hivemind_p2p.dht.patience import Patience
from hivemind_p2p.dht.peer_routing import PeerRouting
from hivemind_p2p.dht.records import Records
from hivemind_p2p.dht.trace import DHTTrace
from hivemind_p2p.dht.validation import CompositeValidator
from hivemind_p2p.errors import HivemindError, ProtocolViolation, Unauthorized
from hivemind_p2p.kademlia import SHA1, Contact, RoutingTable, Verdict
from hivemind_p2p.transport.addresses import split_peer
from hivemind_p2p.wire import dht_pb2
from hivemind_p2p.wire.peer_id import PeerID

if TYPE_CHECKING:
    from hivemind_p2p.rpc import RPC, CallContext
    from hivemind_p2p.rpc.context import UnaryHandler

logger = logging.getLogger(__name__)
Q = TypeVar("Q", dht_pb2.PingRequest, dht_pb2.StoreRequest, dht_pb2.FindRequest)
R = TypeVar("R", dht_pb2.PingResponse, dht_pb2.StoreResponse, dht_pb2.FindResponse)

PING: Final = "DHTProtocol.rpc_ping"
STORE: Final = "DHTProtocol.rpc_store"
FIND: Final = "DHTProtocol.rpc_find"
MESSAGE_ROOM: Final = 3 * 2**20
"""Bytes of values in one message; calls are bounded at 4 MiB, of which ids and addresses take their part."""
_CONTACT_SIZE: Final = 64
"""Bytes of a node id and a peer id in an answer."""


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


@dataclass(frozen=True)
class StoreAnswer:
    """What became of items to store.

    Attributes:
        verdicts: one for each item, or for the first of them, when the peer failed before it had them all.
        nearest: ids of the nodes that the peer knows nearest to each key, itself among them; if it was asked and is
            one of ours.
    """

    verdicts: Sequence[Verdict]
    nearest: Mapping[DHTID, Sequence[DHTID]]


class DHTProtocol:
    """One node's records, routing table, and calls.

    Args:
        rpc: makes and serves the calls.
        node_id: ours.
        clock: Unix time in seconds.
        client_mode: serve nothing, tell no node id.
        validator: judges every record that we are asked to keep, and every one that we find.
        trace: told what happens.
        authorizer: signs what we send, and judges who sends to us. None: everybody is welcome.
    """

    def __init__(
        self,
        rpc: RPC,
        settings: DHTSettings,
        *,
        node_id: DHTID,
        clock: Callable[[], float],
        client_mode: bool,
        validator: CompositeValidator,
        authorizer: AuthorizerBase | None = None,
        trace: DHTTrace | None = None,
    ) -> None:
        self.rpc, self.network, self.settings = rpc, rpc.network, settings
        self.clock, self.client_mode, self._authorizer = clock, client_mode, authorizer
        self.own: PeerContact = Contact(node_id, rpc.network.peer_id)
        self.table: RoutingTable[PeerID] = RoutingTable(
            self.own,
            space=SHA1,
            bucket_size=settings.bucket_size,
            depth_modulo=settings.depth_modulo,
            now=clock(),
        )
        self.records = Records(settings, clock, validator)
        self.storage, self.cache = self.records.storage, self.records.cache
        self.blacklist = Blacklist(settings.blacklist_time, settings.backoff_rate)
        self.on_new_contact: Callable[[PeerContact], None] = lambda contact: None
        """Called for every contact that was not in the table before."""
        self.on_contact_to_ping: Callable[[PeerContact], None] = lambda contact: None
        """Called for every contact that stands in the way of another and may be dead."""
        self.patience = Patience(settings)
        self.alarms = Alarms()
        self.trace = trace
        self.clock_offsets = ClockOffsets(settings.max_clock_skew / 2)
        self.peer_routing = PeerRouting(rpc.network, settings, clock)
        self._limiter = trio.CapacityLimiter(settings.parallel_rpc)

    def serve(self) -> None:
        """Start to answer, unless we are a client."""
        if not self.client_mode:
            self.peer_routing.serve()
            self.rpc.register(PING, dht_pb2.PingRequest, self._authorized(self._serve_ping))
            self.rpc.register(STORE, dht_pb2.StoreRequest, self._authorized(self._serve_store))
            self.rpc.register(FIND, dht_pb2.FindRequest, self._authorized(self._serve_find))

    def stop(self) -> None:
        """Stop to answer."""
        if not self.client_mode:
            self.peer_routing.stop()
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
            if not math.isfinite(response.dht_time):
                raise ProtocolViolation(f"{peer} says that the time is {response.dht_time}")
        except HivemindError:
            self.silent(peer)
            raise
        answered = self.clock()
        self._heard(peer, response.peer)
        skew = 0.0
        if response.dht_time:
            skew = response.dht_time - min(max(response.dht_time, asked), answered)
            self.clock_offsets.add(peer, skew)
        return Pong(node_id, response.available, skew)

    async def store(self, peer: PeerID, items: Sequence[StoreItem], *, tell_nearest: int = 0) -> StoreAnswer | None:
        """Ask a peer to store records, in as many messages as they need.

        Args:
            tell_nearest: of how many of the nodes nearest to each key it shall tell.

        Returns:
            None when the peer failed.
        """
        verdicts: list[Verdict] = []
        nearest: dict[DHTID, list[DHTID]] = {}
        try:
            for part in self._parts(items):
                request = messages.store_request(part, self._node_info(), tell_nearest=tell_nearest)
                response = await self._request(peer, STORE, request, dht_pb2.StoreResponse)
                self._heard(peer, response.peer)
                verdicts += messages.store_verdicts(response, len(part))
                nearest |= messages.nearest_told(response, part, tell_nearest)
        except HivemindError as error:
            logger.debug("cannot store %d records at %s: %s", len(items), peer, error)
            self.silent(peer)
            if not verdicts:
                return None
        return StoreAnswer(verdicts, nearest)

    async def find(self, peer: PeerID, keys: Sequence[DHTID], *, tell_nearest: int = 0) -> FindAnswer | None:
        """Ask a peer for keys, and for whom it knows near them.

        Args:
            tell_nearest: how many of them it is to name; 0: as many as it does by itself.

        Returns:
            None when the peer failed or is passed over for having failed just now.
        """
        if self.blacklist.passes_over(peer, trio.current_time()):
            return None
        ids = [SHA1.to_bytes(key) for key in keys]
        request = dht_pb2.FindRequest(keys=ids, peer=self._node_info(), tell_nearest=tell_nearest)
        try:
            response = await self._request(peer, FIND, request, dht_pb2.FindResponse, self.patience.timeout(peer))
            answer = messages.find_answer(response, keys, self.settings, self.clock())
        except HivemindError as error:
            logger.debug("cannot find %d keys at %s: %s", len(keys), peer, error)
            self.silent(peer)
            return None
        self._heard(peer, response.peer)
        for named, maddrs in answer.addresses.items():
            self.network.add_addresses(named, maddrs)
        named_by_it = {contact.peer for found in answer.found.values() for contact in found.nearest}
        self.peer_routing.named(named_by_it - answer.addresses.keys(), by=peer)
        valid = self.records.valid_part
        found = {key: replace(each, record=valid(key, each.record)) for key, each in answer.found.items()}
        return replace(answer, found=found)

    # What we note

    def silent(self, peer: PeerID) -> None:
        """Note that a peer did not answer."""
        self.blacklist.failed(peer, trio.current_time())  # a clock may be set back
        self.peer_routing.silent(peer)
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

    def _serve_store(self, request: dht_pb2.StoreRequest, context: CallContext) -> dht_pb2.StoreResponse:
        items = messages.store_items(request)
        self._heard(context.peer_id, request.peer)
        limit = self.settings.max_keys_per_message
        verdicts = [self.records.accept(item, context.peer_id) for item in items[:limit]]
        response = messages.store_response(verdicts + [Verdict.NO_ROOM] * len(items[limit:]), self._node_info())
        if request.tell_nearest and len(items) <= limit:
            keys = dict.fromkeys(item.key for item in items)
            sender = messages.node_id_in(request.peer)
            response.nearest_node_ids.extend(self._ids_near(key, request.tell_nearest, sender) for key in keys)
        return response

    def _serve_find(self, request: dht_pb2.FindRequest, context: CallContext) -> dht_pb2.FindResponse:
        keys = messages.requested_keys(request, self.settings.max_keys_per_message)
        self._heard(context.peer_id, request.peer)
        sender = messages.node_id_in(request.peer)
        exclude = () if sender is None else (sender,)
        response = dht_pb2.FindResponse(peer=self._node_info())
        count, named = min(request.tell_nearest or self.settings.bucket_size, self.settings.bucket_size), set[PeerID]()
        room = MESSAGE_ROOM - len(keys) * count * _CONTACT_SIZE
        for key in keys:
            nearest = self.table.nearest(key, count, exclude=exclude)
            result = messages.find_result(Found(self.records.local(key), nearest), now=self.clock(), room=room)
            response.results.append(result)
            room -= len(result.value)
            named.update(contact.peer for contact in nearest)
        addresses = {peer: self.network.addresses(peer)[: self.settings.max_addresses] for peer in sorted(named)}
        response.nearest_peer_addresses.extend(messages.peer_addresses(addresses))
        return response

    # Underneath

    def _ids_near(self, key: DHTID, count: int, sender: DHTID | None) -> bytes:
        """The ids nearest to a key that we know of, our own among them, behind each other."""
        count = min(count, self.settings.bucket_size)
        exclude = () if sender is None else (sender,)
        ids = [contact.node_id for contact in self.table.nearest(key, count, exclude=exclude)]
        return b"".join(map(SHA1.to_bytes, sorted([self.own.node_id, *ids], key=key.__xor__)[:count]))

    async def _request(
        self, peer: PeerID, method: str, request: Request, response_type: type[R], timeout: float | None = None
    ) -> R:
        try:
            self._limiter.acquire_nowait()
        except trio.WouldBlock:
            await self._limiter.acquire()
        try:
            with asking():
                wait = self.settings.wait_timeout if timeout is None else timeout
                if self._authorizer is not None:
                    await self._authorizer.sign_request(request)
                began = trio.current_time()
                response = await self.rpc.call(peer, method, request, response_type, timeout=wait)
                self.patience.answered(peer, trio.current_time() - began)
                if self._authorizer is not None and not await self._authorizer.validate_response(response, request):
                    raise Unauthorized(f"{peer} did not show that it may be in this swarm; its answer is not believed")
                return response
        finally:
            self._limiter.release()

    def _authorized(self, serve: Callable[[Q, CallContext], Awaitable[R] | R]) -> UnaryHandler[Q]:
        """A handler that serves only those who may use this swarm."""
        authorizer = self._authorizer
        if authorizer is None:
            return serve

        async def serve_authorized(request: Q, context: CallContext) -> R:
            if not await authorizer.validate_request(request):
                raise Unauthorized(f"{context.peer_id} did not show that it may use this swarm: it takes a valid token")
            answer = serve(request, context)
            response = await answer if isinstance(answer, Awaitable) else answer
            await authorizer.sign_response(response, request)
            return response

        return serve_authorized

    def _heard(self, peer: PeerID, info: dht_pb2.NodeInfo) -> None:
        """A peer sent us something: it lives, and tells where."""
        self.blacklist.answered(peer)
        node_id = messages.node_id_in(info)
        if node_id is None:
            return
        maddrs = [split_peer(maddr)[0] for maddr in messages.maddrs_in(info.maddrs, self.settings.max_addresses)]
        self.network.add_addresses(peer, maddrs)
        self.peer_routing.alive(peer)
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

    def __repr__(self) -> str:
        mode = "client" if self.client_mode else "server"
        return f"<DHTProtocol {SHA1.to_bytes(self.own.node_id).hex()[:8]}, {mode}, {len(self.table)} contacts>"
